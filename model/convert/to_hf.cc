#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/id.h"
#include "common/status.h"
#include "model/convert/convert.h"
#include "model/convert/gguf_source.h"
#include "model/convert/model_check.h"
#include "model/gguf/vocab.h"
#include "model/safetensors_writer.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using c10::ScalarType;
using nlohmann::json;
namespace fs = std::filesystem;

constexpr uint64_t kMaxShardBytes = 5'000'000'000;

const char* DtypeName(ScalarType dtype) {
  if (dtype == ScalarType::BFloat16) return "bfloat16";
  return dtype == ScalarType::Half ? "float16" : "float32";
}

// bf16 or f16 where every matrix has it and every other tensor survives it; f32 else.
absl::StatusOr<ScalarType> LosslessDtype(GgufSource& source) {
  std::optional<ScalarType> dtype;
  std::vector<std::string> others;
  for (const std::string& name : source.Names()) {
    ASSIGN_OR_RETURN(const GgufSource::Description description, source.Describe(name));
    if (description.shape.size() < 2 || absl::EndsWith(name, ".mlp.gate.weight")) {
      others.push_back(name);
      continue;
    }
    if (dtype && *dtype != description.dtype) return ScalarType::Float;
    dtype = description.dtype;
  }
  if (!dtype || *dtype == ScalarType::Float) return ScalarType::Float;
  for (const std::string& name : others) {
    ASSIGN_OR_RETURN(const at::Tensor values, source.Get(name));
    if (!at::equal(values, values.to(*dtype).to(values.scalar_type())) &&
        !absl::EndsWith(name, "e_score_correction_bias")) {
      return ScalarType::Float;
    }
  }
  return *dtype;
}

absl::Status WriteWeights(GgufSource& source, ScalarType dtype, const std::string& folder) {
  std::vector<std::vector<SafetensorsEntry>> shards(1);
  uint64_t shard_bytes = 0;
  uint64_t total_bytes = 0;
  for (const std::string& name : source.Names()) {
    ASSIGN_OR_RETURN(GgufSource::Description description, source.Describe(name));
    // The gate's correction decides between experts whose scores are near: it stays as exact as it is.
    const bool exact = absl::EndsWith(name, "e_score_correction_bias");
    SafetensorsEntry entry = {name, exact ? description.dtype : dtype, std::move(description.shape)};
    const uint64_t bytes = entry.bytes();
    if (shard_bytes > 0 && shard_bytes + bytes > kMaxShardBytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(std::move(entry));
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  json weight_map = json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shards.size() == 1
                                 ? "model.safetensors"
                                 : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    ASSIGN_OR_RETURN(SafetensorsWriter writer,
                     SafetensorsWriter::Create(folder + "/" + file, shards[i], {{"format", "pt"}}));
    for (const SafetensorsEntry& entry : shards[i]) {
      ASSIGN_OR_RETURN(const at::Tensor tensor, source.Get(entry.name));
      const at::Tensor converted = tensor.to(entry.dtype);
      if (entry.dtype == ScalarType::Half && !at::isfinite(converted).all().item().toBool()) {
        return absl::InvalidArgumentError(absl::StrCat(source.file().path(), ": ", entry.name,
                                                       " holds values that are too large for float16; --type bfloat16 ",
                                                       "holds them"));
      }
      RETURN_IF_ERROR(writer.Append(converted));
      weight_map[entry.name] = file;
    }
    RETURN_IF_ERROR(writer.Commit());
  }
  if (shards.size() == 1) return absl::OkStatus();
  const json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  return WriteFileAtomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

absl::Status WriteFolder(GgufSource& source, std::optional<ScalarType> dtype, const std::string& folder,
                         std::vector<std::string>& warnings) {
  if (!dtype) {
    ASSIGN_OR_RETURN(dtype, LosslessDtype(source));
  }
  json config = source.config();
  config["torch_dtype"] = DtypeName(*dtype);
  RETURN_IF_ERROR(WriteFileAtomically(folder + "/config.json", config.dump(2) + "\n"));
  ASSIGN_OR_RETURN(const json generation, gguf::GenerationConfigFromGguf(source.file()));
  RETURN_IF_ERROR(WriteFileAtomically(folder + "/generation_config.json", generation.dump(2) + "\n"));
  ASSIGN_OR_RETURN(const auto files, gguf::TokenizerFilesFromGguf(source.file()));
  if (files.empty()) warnings.push_back(source.file().path() + " holds no tokenizer");
  for (const auto& [name, contents] : files) {
    RETURN_IF_ERROR(WriteFileAtomically(folder + "/" + name, contents));
  }
  return WriteWeights(source, *dtype, folder);
}

}  // namespace

absl::Status ConvertToHf(const std::string& file, const std::string& folder, std::optional<ScalarType> dtype,
                         const ConvertOptions& options) {
  std::error_code error;
  const bool exists = fs::exists(folder, error);
  if (exists && !options.overwrite) {
    return absl::AlreadyExistsError(absl::StrCat(folder, " is there already; give --overwrite to replace it"));
  }
  if (exists && !fs::is_directory(folder, error)) {
    return absl::InvalidArgumentError(absl::StrCat(folder, " is a file; name the folder to be written"));
  }
  // What is removed for the new folder is a model, and nothing else that a slip of the hand named.
  if (exists && !fs::is_empty(folder, error) && !fs::exists(fs::path(folder) / "config.json", error)) {
    return absl::InvalidArgumentError(absl::StrCat(folder, " holds no config.json: only a model's folder is replaced"));
  }
  ASSIGN_OR_RETURN(const auto source, GgufSource::Open(file));
  RETURN_IF_ERROR(CheckTensorsAgainstConfig(
      source->config(), file, [&](const std::string& name) -> absl::StatusOr<std::vector<int64_t>> {
        ASSIGN_OR_RETURN(const GgufSource::Description description, source->Describe(name));
        return description.shape;
      }));
  std::string target = folder;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  const std::string partial = absl::StrCat(target, ".partial.", RandomHex(8));
  RETURN_IF_ERROR(MakeFolders(partial));
  absl::Status status = CatchTorchErrors(absl::StrCat("convert ", file),
                                         [&] { return WriteFolder(*source, dtype, partial, *options.warnings); });
  const std::string replaced = absl::StrCat(target, ".replaced.", RandomHex(8));
  if (status.ok() && exists) {
    fs::rename(target, replaced, error);
    if (error) status = ErrnoStatus(absl::StrCat("rename ", target), error.value());
  }
  if (status.ok()) status = PublishFolder(partial, target);
  if (!status.ok()) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    if (exists && !fs::exists(target, ignored)) fs::rename(replaced, target, ignored);
    return status;
  }
  if (exists) fs::remove_all(replaced, error);
  return absl::OkStatus();
}

}  // namespace retort
