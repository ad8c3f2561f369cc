#include "cli/spec/local_checks.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status.h"
#include "model/training_rows.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status CheckPromptRow(const v1::PromptSource& source, bool needs_answer, const json& row) {
  if (!row.is_object()) return absl::InvalidArgumentError(absl::StrCat("is ", row.type_name(), ", wants an object"));
  const auto prompt = row.find(source.prompt_field());
  if (prompt == row.end()) {
    std::vector<std::string> fields;
    for (const auto& [name, value] : row.items()) fields.push_back(name);
    return Invalid(source.prompt_field(),
                   absl::StrCat("missing; the row has ", fields.empty() ? "no fields" : absl::StrJoin(fields, ", "),
                                "; name the right one with prompt_field"));
  }
  if (!prompt->is_string())
    return Invalid(source.prompt_field(), absl::StrCat("is ", prompt->type_name(), ", wants a string"));
  if (!needs_answer) return absl::OkStatus();
  const auto answer = row.find(source.answer_field());
  if (answer == row.end() || answer->is_null()) {
    return Invalid(source.answer_field(), "missing, and a verifier needs it; name the right one with answer_field");
  }
  if (!answer->is_string() && !answer->is_number()) {
    return Invalid(source.answer_field(), absl::StrCat("is ", answer->type_name(), ", wants a string or a number"));
  }
  return absl::OkStatus();
}

void CheckPrompts(const std::string& path, const Origins& origins, const v1::PromptSource& source, bool needs_answer,
                  Diagnostics* diagnostics) {
  if (source.path().empty() || diagnostics->Touches(path)) return;
  std::error_code error;
  if (!fs::is_regular_file(source.path(), error)) {
    diagnostics->Add(
        origins.Of(path), path,
        absl::StrCat(source.path(), fs::exists(source.path(), error) ? " is not a file" : " does not exist",
                     "; wants a JSONL file of problems"));
    return;
  }
  int64_t rows = 0;
  const absl::Status status = ForEachJsonLine(source.path(), [&](int64_t, absl::string_view, const json& row) {
    ++rows;
    return CheckPromptRow(source, needs_answer, row);
  });
  if (!status.ok()) {
    diagnostics->Add(origins.Of(path), path, status.message());
  } else if (rows == 0) {
    diagnostics->Add(origins.Of(path), path, absl::StrCat(source.path(), " has no rows"));
  } else if (static_cast<int64_t>(source.weight() * static_cast<double>(rows)) == 0) {
    diagnostics->Add(
        origins.Of(path), path,
        absl::StrCat("weight ", source.weight(), " of the ", rows, " rows of ", source.path(), " is none"));
  }
}

void CheckDataset(const std::string& path, const Origins& origins, const v1::TrainingSpec& training,
                  v1::DatasetSource* source, Diagnostics* diagnostics) {
  if (source->path().empty() || diagnostics->Touches(path) || diagnostics->Touches("student.training")) return;
  std::error_code error;
  if (!fs::is_regular_file(source->path(), error)) {
    diagnostics->Add(
        origins.Of(path + ".path"), path + ".path",
        absl::StrCat(source->path(), fs::exists(source->path(), error) ? " is not a file" : " does not exist",
                     "; wants a JSONL file of training rows"));
    return;
  }
  const SftOptions options = SftOptionsOf(training, *source);
  int64_t rows = 0;
  const absl::Status status =
      ForEachJsonLine(source->path(), [&](int64_t, absl::string_view, const json& row) -> absl::Status {
        ++rows;
        if (source->format() == v1::DATASET_FORMAT_UNSPECIFIED) {
          ASSIGN_OR_RETURN(const v1::DatasetFormat format, InferRowFormat(row));
          source->set_format(format);
        }
        return CheckTrainingRow(row, source->format(), options);
      });
  source->set_rows(rows);
  if (!status.ok()) {
    diagnostics->Add(origins.Of(path + ".path"), path + ".path", status.message());
  } else if (rows == 0) {
    diagnostics->Add(origins.Of(path + ".path"), path + ".path", absl::StrCat(source->path(), " has no rows"));
  } else if (static_cast<int64_t>(source->weight() * static_cast<double>(rows)) == 0) {
    diagnostics->Add(origins.Of(path + ".weight"), path + ".weight",
                     absl::StrCat(source->weight(), " of the ", rows, " rows of ", source->path(), " is none"));
  }
}

// Whether `folder` is there and holds `files`; complains otherwise.
bool CheckFolder(const std::string& path, const Origins& origins, const std::string& folder, absl::string_view what,
                 const std::vector<std::string>& files, Diagnostics* diagnostics) {
  std::error_code error;
  const auto complain = [&](absl::string_view message) {
    diagnostics->Add(origins.Of(path), path, message);
    return false;
  };
  if (!fs::exists(folder, error)) return complain(absl::StrCat(folder, " does not exist; wants ", what));
  if (!fs::is_directory(folder, error)) return complain(absl::StrCat(folder, " is not a folder; wants ", what));
  std::vector<std::string> missing;
  for (const std::string& file : files) {
    if (!fs::is_regular_file(fs::path(folder) / file, error)) missing.push_back(file);
  }
  if (!missing.empty())
    return complain(absl::StrCat(folder, " has no ", absl::StrJoin(missing, ", "), "; wants ", what));
  for (const std::string& file : files) {
    if (!absl::EndsWith(file, ".json")) continue;
    const auto parsed = ReadJsonFile((fs::path(folder) / file).string());
    if (!parsed.ok()) return complain(parsed.status().message());
    if (!parsed->is_object()) return complain(absl::StrCat(folder, "/", file, " is not a JSON object"));
  }
  return true;
}

void CheckModel(const std::string& path, const Origins& origins, const std::string& folder, bool needs_tokenizer,
                Diagnostics* diagnostics) {
  if (folder.empty() || diagnostics->Touches(path)) return;
  std::vector<std::string> files = {"config.json"};
  if (needs_tokenizer) files.push_back("tokenizer.json");
  const std::string what =
      absl::StrCat("a Hugging Face folder with ", absl::StrJoin(files, ", "), " and *.safetensors");
  if (!CheckFolder(path, origins, folder, what, files, diagnostics)) return;
  const auto tensors = ReadModelTensors(folder);
  if (!tensors.ok()) diagnostics->Add(origins.Of(path), path, tensors.status().message());
}

// Training starts from the adapter as it is: what the job says of a new one may not contradict it.
void CheckSameLora(const Origins& origins, const v1::LoraSpec& lora, const std::string& folder,
                   Diagnostics* diagnostics) {
  const auto config = ReadJsonFile(folder + "/adapter_config.json");
  if (!config.ok() || !config->is_object()) return;  // the worker says what is wrong with it
  const std::pair<const char*, double> values[] = {
      {"r", lora.r()}, {"lora_alpha", lora.lora_alpha()}, {"lora_dropout", lora.lora_dropout()}};
  for (const auto& [key, value] : values) {
    const auto in_file = config->find(key);
    if (in_file == config->end() || !in_file->is_number() || in_file->get<double>() == value) continue;
    const std::string path = absl::StrCat("student.lora.", key);
    diagnostics->Add(origins.Of(path), path,
                     absl::StrCat(value, origins.Wrote(path) ? "" : " (the default)", " stands against ",
                                  in_file->dump(), " in ", folder,
                                  "/adapter_config.json, where "
                                  "student.adapter_name_or_path starts; leave student.lora out to take what is there"));
  }
}

}  // namespace

void CheckDataFiles(const Origins& origins, v1::JobSpec* spec, Diagnostics* diagnostics) {
  const bool verified = spec->curate().verify().kind() != v1::VERIFIER_KIND_UNSPECIFIED;
  for (int i = 0; i < spec->prompts_size(); ++i) {
    CheckPrompts(absl::StrCat("prompts.", i, ".path"), origins, spec->prompts(i), verified, diagnostics);
  }
  for (int i = 0; i < spec->dataset_size(); ++i) {
    CheckDataset(absl::StrCat("dataset.", i), origins, spec->student().training(), spec->mutable_dataset(i),
                 diagnostics);
  }
  for (int i = 0; i < spec->evaluate_size(); ++i) {
    CheckPrompts(absl::StrCat("evaluate.", i, ".prompts"), origins, spec->evaluate(i).prompts(), true, diagnostics);
  }
}

void CheckModelFolders(const Origins& origins, const v1::JobSpec& spec, Diagnostics* diagnostics) {
  if (spec.has_teacher() && spec.teacher().backend() == v1::TEACHER_BACKEND_NATIVE) {
    CheckModel("teacher.model", origins, spec.teacher().model(), true, diagnostics);
  }
  if (!spec.has_student()) return;
  // Rows of token ids need no tokenizer, as long as nothing is generated.
  bool needs_tokenizer = spec.dataset().empty() || !spec.evaluate().empty();
  for (const v1::DatasetSource& source : spec.dataset()) {
    needs_tokenizer |= source.format() != v1::DATASET_FORMAT_TOKENIZED;
  }
  CheckModel("student.model_name_or_path", origins, spec.student().model_name_or_path(), needs_tokenizer, diagnostics);
  const std::string& adapter = spec.student().adapter_name_or_path();
  const std::string path = "student.adapter_name_or_path";
  if (adapter.empty() || diagnostics->Touches(path)) return;
  if (!CheckFolder(path, origins, adapter, "a PEFT folder with adapter_config.json and adapter_model.safetensors",
                   {"adapter_config.json", "adapter_model.safetensors"}, diagnostics)) {
    return;
  }
  const auto tensors = ReadSafetensorsHeader(adapter + "/adapter_model.safetensors");
  if (!tensors.ok()) diagnostics->Add(origins.Of(path), path, tensors.status().message());
  if (spec.student().has_lora()) CheckSameLora(origins, spec.student().lora(), adapter, diagnostics);
}

}  // namespace retort::cli
