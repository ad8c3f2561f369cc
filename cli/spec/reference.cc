#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "cli/spec/schema.h"

namespace retort::cli {
namespace {

constexpr absl::string_view kIntroduction = R"(# The job file

One YAML document describes a job. Its keys are named as in Hugging Face TRL and PEFT, and in vLLM. `distctl validate job.yaml` checks
it, `distctl plan job.yaml` says what would run, `distctl submit job.yaml` runs it.

- An unknown key, a wrong type or an impossible value is refused with file, line and column, all of them at once; nothing is ignored.
- Input paths are relative to the job file's folder, `output_dir` to the folder where `distctl` runs.
- `--set path.to.key=value` overrides a key before anything is checked; the value is YAML, a number in the path is an index into a list
  (`--set dataset.0.path=more.jsonl`; the list's length appends). A `null` is the same as leaving the key out.
- A job has `prompts` and a `teacher`, or a `dataset` ([kinds of rows, masks, added tokens](training-data.md)). Without `student` it ends with curated traces.
- The tables below are all keys. "not in this version" marks what is known and refused.

A whole job:

```yaml
name: math-to-small
prompts:
  - {path: data/math.jsonl, prompt_field: problem, answer_field: answer}
teacher:
  backend: native
  model: models/teacher
  sampling: {n: 4, temperature: 0.6, top_p: 0.95, max_tokens: 8192, seed: 7}
  instruction: "Please reason step by step, and put your final answer within \\boxed{}."
  workers: {min: 1, max: 4}
curate:
  verify: {kind: number}
  split: {train: 0.9, validation: 0.1}
student:
  model_name_or_path: models/student
  lora: {r: 16, lora_alpha: 32, target_modules: all-linear}
  training: {per_device_train_batch_size: 2, gradient_accumulation_steps: 4, learning_rate: 2.0e-4, lr_scheduler_type: cosine,
             warmup_ratio: 0.03, num_train_epochs: 3, eval_strategy: epoch}
  workers: {min: 1, max: 4}
evaluate:
  - {prompts: data/held_out.jsonl, prompt_field: problem, answer_field: answer}
export: {adapter: true, merged: bf16}
```
)";

std::string TypeText(const Key& key) {
  if (key.type == KeyType::kChoice || key.type == KeyType::kWord) {
    std::string text;
    for (absl::string_view choice : absl::StrSplit(key.choices, '|')) {
      if (absl::StartsWith(choice, "!")) continue;
      absl::StrAppend(&text, text.empty() ? "" : ", ", "`", absl::StrReplaceAll(choice, {{"*", "N"}}), "`");
    }
    return text;
  }
  return DescribeWanted(key);
}

std::string DefaultText(const Key& key) {
  if (key.presence == Presence::kRequired) return "required";
  if (key.presence == Presence::kNotSupported || key.fallback.empty()) return "";
  return absl::StrCat("`", key.fallback, "`");
}

std::string MeaningText(const Key& key) {
  std::string text(key.doc);
  const auto add = [&](absl::string_view sentence) { absl::StrAppend(&text, text.empty() ? "" : " ", sentence); };
  if (key.presence == Presence::kNotSupported) add("Not in this version.");
  if (!key.only.empty()) add(absl::StrCat("Only `", key.only, "` in this version."));
  std::string refused;
  for (absl::string_view choice : absl::StrSplit(key.choices, '|')) {
    if (absl::ConsumePrefix(&choice, "!")) absl::StrAppend(&refused, refused.empty() ? "" : ", ", "`", choice, "`");
  }
  if (!refused.empty()) add(absl::StrCat("Not in this version: ", refused, "."));
  return absl::StrReplaceAll(text, {{"|", "\\|"}});
}

}  // namespace

std::string JobSpecReference() {
  std::string text(kIntroduction);
  std::string section = "?";
  for (const Key& key : JobSpecKeys()) {
    const std::string top(key.path.substr(0, key.path.find_first_of(".[")));
    const bool is_group =
        key.type == KeyType::kMap || key.type == KeyType::kOptionalMap || key.type == KeyType::kMapList;
    const bool has_section = is_group && key.presence != Presence::kNotSupported;
    const std::string wanted = key.path == top && !has_section ? "" : top;
    if (wanted != section) {
      section = wanted;
      absl::StrAppend(&text, "\n## ", section.empty() ? "The job" : absl::StrCat("`", section, "`"), "\n\n");
      if (key.path == top && has_section) absl::StrAppend(&text, key.doc, "\n\n");
      absl::StrAppend(&text, "| key | takes | default | meaning |\n|---|---|---|---|\n");
      if (key.path == top && has_section) continue;
    }
    absl::StrAppend(&text, "| `", key.path, "` | ", TypeText(key), " | ", DefaultText(key), " | ", MeaningText(key),
                    " |\n");
  }
  return text;
}

}  // namespace retort::cli
