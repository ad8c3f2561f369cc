#include <ATen/ops/equal.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/id.h"
#include "common/json.h"
#include "common/status.h"
#include "model/convert/convert.h"
#include "model/convert/gguf_source.h"
#include "model/convert/hf_weights.h"
#include "model/convert/model_check.h"
#include "model/gguf/vocab.h"
#include "model/model_folder.h"
#include "model/plain_source.h"
#include "model/safetensors_source.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using c10::ScalarType;
using nlohmann::json;
namespace fs = std::filesystem;

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

absl::Status WriteConfig(json config, const HfFormat& format, const std::string& folder) {
  DescribePlainWeights(*format.dtype, config);
  if (format.quantise.has_value()) config["quantization_config"] = QuantizationConfig(format);
  return WriteFileAtomically(folder + "/config.json", config.dump(2) + "\n");
}

absl::Status WriteFromGguf(const std::string& file, HfFormat format, const std::string& folder,
                           std::vector<std::string>& warnings) {
  ASSIGN_OR_RETURN(const auto source, GgufSource::Open(file));
  RETURN_IF_ERROR(CheckTensorsAgainstConfig(source->config(), file,
                                            [&](const std::string& name) { return source->ShapeOf(name); }));
  ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(source->config(), nullptr, file));
  if (!format.dtype) {
    ASSIGN_OR_RETURN(format.dtype, LosslessDtype(*source));
  }
  RETURN_IF_ERROR(WriteConfig(source->config(), format, folder));
  ASSIGN_OR_RETURN(const json generation, gguf::GenerationConfigFromGguf(source->file()));
  RETURN_IF_ERROR(WriteFileAtomically(folder + "/generation_config.json", generation.dump(2) + "\n"));
  ASSIGN_OR_RETURN(const auto files, gguf::TokenizerFilesFromGguf(source->file()));
  if (files.empty()) warnings.push_back(source->file().path() + " holds no tokenizer");
  for (const auto& [name, contents] : files) {
    RETURN_IF_ERROR(WriteFileAtomically(folder + "/" + name, contents));
  }
  return WriteHfWeights(*source, config, format, file, folder);
}

absl::Status WriteFromFolder(const std::string& original, HfFormat format, const std::string& folder) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(original));
  ASSIGN_OR_RETURN(const json object, ReadJsonFile(original + "/config.json"));
  ASSIGN_OR_RETURN(const auto files, OpenSafetensorsFolder(original));
  const auto source = PlainTensors(*files, config, c10::ScalarType::Float);
  RETURN_IF_ERROR(
      CheckTensorsAgainstConfig(object, original, [&](const std::string& name) { return source->ShapeOf(name); }));
  if (!format.dtype) format.dtype = config.dtype;
  RETURN_IF_ERROR(CopyModelFiles(original, /*tokenizer_folder=*/"", folder));
  RETURN_IF_ERROR(WriteConfig(object, format, folder));
  return WriteHfWeights(*source, config, format, original, folder);
}

}  // namespace

absl::Status ConvertToHf(const std::string& source, const std::string& folder, const HfFormat& format,
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
  if (exists && fs::equivalent(source, folder, error)) {
    return absl::InvalidArgumentError(absl::StrCat(folder, " is what is to be converted; name another folder"));
  }
  std::string target = folder;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  const std::string partial = absl::StrCat(target, ".partial.", RandomHex(8));
  RETURN_IF_ERROR(MakeFolders(partial));
  absl::Status status = CatchTorchErrors(absl::StrCat("convert ", source), [&] {
    return fs::is_directory(source) ? WriteFromFolder(source, format, partial)
                                    : WriteFromGguf(source, format, partial, *options.warnings);
  });
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
