#include "cli/spec/schema.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/check.h"

namespace retort::cli {
namespace {

std::unique_ptr<KeyNode> BuildTree() {
  auto root = std::make_unique<KeyNode>();
  for (const Key& key : JobSpecKeys()) {
    const std::string path = absl::StrReplaceAll(key.path, {{"[]", ""}});
    KeyNode* node = root.get();
    for (absl::string_view part : absl::StrSplit(path, '.')) {
      KeyNode* next = const_cast<KeyNode*>(node->Find(part));
      if (next == nullptr) {
        node->children.push_back(std::make_unique<KeyNode>());
        next = node->children.back().get();
        next->name = std::string(part);
      }
      node = next;
    }
    RETORT_CHECK(node->key == nullptr);
    node->key = &key;
  }
  return root;
}

// Words that other tools use, and the key that they mean here. Only used where that key is valid.
const std::multimap<absl::string_view, absl::string_view>& Synonyms() {
  static const auto* const synonyms = new std::multimap<absl::string_view, absl::string_view>{
      {"rank", "r"},
      {"lora_r", "r"},
      {"lora_rank", "r"},
      {"alpha", "lora_alpha"},
      {"dropout", "lora_dropout"},
      {"modules", "target_modules"},
      {"targets", "target_modules"},
      {"lr", "learning_rate"},
      {"epochs", "num_train_epochs"},
      {"num_epochs", "num_train_epochs"},
      {"n_epochs", "num_train_epochs"},
      {"steps", "max_steps"},
      {"train_steps", "max_steps"},
      {"batch_size", "per_device_train_batch_size"},
      {"micro_batch_size", "per_device_train_batch_size"},
      {"train_batch_size", "per_device_train_batch_size"},
      {"eval_batch_size", "per_device_eval_batch_size"},
      {"gradient_accumulation", "gradient_accumulation_steps"},
      {"grad_accum", "gradient_accumulation_steps"},
      {"accumulation_steps", "gradient_accumulation_steps"},
      {"max_seq_length", "max_length"},
      {"max_seq_len", "max_length"},
      {"cutoff_len", "max_length"},
      {"scheduler", "lr_scheduler_type"},
      {"lr_scheduler", "lr_scheduler_type"},
      {"warmup", "warmup_ratio"},
      {"clip_grad_norm", "max_grad_norm"},
      {"gradient_clipping", "max_grad_norm"},
      {"grad_clip", "max_grad_norm"},
      {"evaluation_strategy", "eval_strategy"},
      {"beta1", "adam_beta1"},
      {"beta2", "adam_beta2"},
      {"eps", "adam_epsilon"},
      {"max_new_tokens", "max_tokens"},
      {"num_samples", "n"},
      {"samples", "n"},
      {"num_return_sequences", "n"},
      {"temp", "temperature"},
      {"model", "model_name_or_path"},
      {"base_model", "model_name_or_path"},
      {"model_name", "model_name_or_path"},
      {"model_path", "model_name_or_path"},
      {"model_name_or_path", "model"},
      {"model_name", "model"},
      {"model_path", "model"},
      {"adapter", "adapter_name_or_path"},
      {"adapter_path", "adapter_name_or_path"},
      {"url", "base_url"},
      {"endpoint", "base_url"},
      {"api_base", "base_url"},
      {"concurrency", "max_concurrency"},
      {"timeout", "request_timeout_seconds"},
      {"system_prompt", "system"},
      {"prompt_suffix", "instruction"},
      {"precision", "dtype"},
      {"torch_dtype", "dtype"},
      {"threads", "threads_per_worker"},
      {"replicas", "workers"},
      {"num_workers", "workers"},
      {"minimum", "min"},
      {"maximum", "max"},
      {"datasets", "dataset"},
      {"data", "dataset"},
      {"train_dataset", "dataset"},
      {"data", "prompts"},
      {"eval", "evaluate"},
      {"evaluation", "evaluate"},
      {"output", "output_dir"},
      {"out", "output_dir"},
      {"file", "path"},
      {"data_path", "path"},
      {"question_field", "prompt_field"},
      {"problem_field", "prompt_field"},
      {"solution_field", "answer_field"},
      {"valid", "validation"},
      {"val", "validation"},
      {"verifier", "verify"},
      {"filter", "curate"},
      {"type", "kind"},
      {"pattern", "answer_pattern"},
      {"regex", "answer_pattern"},
      {"deduplicate", "dedup"},
      {"job_name", "name"},
  };
  return *synonyms;
}

// Damerau-Levenshtein (adjacent swaps count once).
int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::vector<int>> d(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

void CollectByName(const KeyNode& node, absl::string_view name, std::vector<std::string>* paths) {
  for (const auto& child : node.children) {
    if (child->name == name && child->key->presence != Presence::kNotSupported) {
      paths->push_back(std::string(child->key->path));
    }
    CollectByName(*child, name, paths);
  }
}

std::string PlainNumber(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return absl::StrCat(static_cast<int64_t>(value));
  return absl::StrCat(value);
}

std::string ChoicesText(absl::string_view choices) {
  std::vector<absl::string_view> supported;
  for (absl::string_view choice : absl::StrSplit(choices, '|')) {
    if (!absl::StartsWith(choice, "!")) supported.push_back(choice);
  }
  return absl::StrJoin(supported, ", ");
}

}  // namespace

bool Range::Contains(double value) const {
  if (std::isnan(value)) return false;
  const bool above = min_open ? value > min : value >= min;
  const bool below = max_open ? value < max : value <= max;
  return above && below;
}

std::string Range::ToString() const {
  const bool has_min = std::isfinite(min);
  const bool has_max = std::isfinite(max) && max < 2147483647;
  if (has_min && has_max) {
    return absl::StrCat("in ", min_open ? "(" : "[", PlainNumber(min), ", ", PlainNumber(max), max_open ? ")" : "]");
  }
  if (has_min) return absl::StrCat(min_open ? "> " : ">= ", PlainNumber(min));
  if (has_max) return absl::StrCat(max_open ? "< " : "<= ", PlainNumber(max));
  return "";
}

const KeyNode* KeyNode::Find(absl::string_view child) const {
  for (const auto& node : children) {
    if (node->name == child) return node.get();
  }
  return nullptr;
}

const KeyNode& JobSpecRoot() {
  static const KeyNode* const root = BuildTree().release();
  return *root;
}

std::string NearestWord(absl::string_view word, absl::Span<const std::string> candidates) {
  std::string best;
  int best_distance = std::max<int>(2, static_cast<int>(word.size()) / 3) + 1;
  for (const std::string& candidate : candidates) {
    // A short word is near to anything; more than half of it may not differ.
    const int distance = EditDistance(word, candidate);
    if (distance < best_distance && 2 * distance <= static_cast<int>(std::max(word.size(), candidate.size()))) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string SuggestKey(absl::string_view unknown, const KeyNode& siblings) {
  const auto meant = [](absl::string_view key) { return absl::StrCat("did you mean \"", key, "\"?"); };
  const auto [first, last] = Synonyms().equal_range(unknown);
  for (auto it = first; it != last; ++it) {
    if (siblings.Find(it->second) != nullptr) return meant(it->second);
  }
  std::vector<std::string> names;
  for (const auto& child : siblings.children) {
    if (child->key->presence != Presence::kNotSupported) names.push_back(child->name);
  }
  std::vector<std::string> elsewhere;
  CollectByName(JobSpecRoot(), unknown, &elsewhere);
  if (elsewhere.size() == 1) return meant(elsewhere[0]);
  if (const std::string nearest = NearestWord(unknown, names); !nearest.empty()) return meant(nearest);
  if (!elsewhere.empty()) return meant(elsewhere[0]);
  return absl::StrCat("valid keys here: ", absl::StrJoin(names, ", "));
}

std::string DescribeWanted(const Key& key) {
  const std::string range = key.range.ToString();
  const auto with_range = [&](absl::string_view what) { return absl::StrCat(what, range.empty() ? "" : " ", range); };
  switch (key.type) {
    case KeyType::kMap:
    case KeyType::kOptionalMap:
      return "a map";
    case KeyType::kMapList:
      return "a list of maps";
    case KeyType::kString:
      return "a string";
    case KeyType::kPath:
      return "a path";
    case KeyType::kInt:
      return with_range("a whole number");
    case KeyType::kUint64:
      return "a whole number >= 0";
    case KeyType::kReal:
      return with_range("a number");
    case KeyType::kBool:
      return "true or false";
    case KeyType::kChoice:
      return absl::StrCat("one of ", ChoicesText(key.choices));
    case KeyType::kStringList:
      return "a list of strings";
    case KeyType::kNamesOrPattern:
      return "a list of names, or a regular expression";
    case KeyType::kIntList:
      return with_range("a list of whole numbers");
    case KeyType::kIntMap:
      return with_range("a map of patterns to whole numbers");
    case KeyType::kRealMap:
      return with_range("a map of patterns to numbers");
    case KeyType::kWord:
      return absl::StrCat("one of ", absl::StrReplaceAll(ChoicesText(key.choices), {{"*", "N"}}));
  }
  return "";
}

}  // namespace retort::cli
