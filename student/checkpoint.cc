#include "student/checkpoint.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/status.h"
#include "model/safetensors.h"
#include "student/setup.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr char kOptimizerFile[] = "optimizer.safetensors";
constexpr char kStateFile[] = "trainer_state.json";
constexpr char kChecksumsFile[] = "checksums.json";
constexpr absl::string_view kFolderPrefix = "checkpoint-";
constexpr const char* kHashedFiles[] = {kAdapterConfigFile, kAdapterWeightsFile, kOptimizerFile, kStateFile};

nlohmann::json PointToJson(const v1::LossPoint& point) {
  nlohmann::json json = {{"step", point.step()},
                         {"loss", point.loss()},
                         {"grad_norm", point.grad_norm()},
                         {"learning_rate", point.learning_rate()}};
  if (point.has_eval_loss()) json["eval_loss"] = point.eval_loss();
  return json;
}

v1::LossPoint PointFromJson(const nlohmann::json& json) {
  v1::LossPoint point;
  point.set_step(json.at("step").get<int64_t>());
  point.set_loss(json.at("loss").get<double>());
  point.set_grad_norm(json.at("grad_norm").get<double>());
  point.set_learning_rate(json.at("learning_rate").get<double>());
  if (json.contains("eval_loss")) point.set_eval_loss(json.at("eval_loss").get<double>());
  return point;
}

absl::Status WriteOptimizer(const Snapshot& snapshot, const std::string& path) {
  std::map<std::string, at::Tensor> tensors;
  for (const ParameterSlice& slice : snapshot.parameters) {
    const auto cut = [&](const at::Tensor& flat) {
      return flat.narrow(0, slice.offset, slice.numel).view(slice.shape);
    };
    tensors["exp_avg." + slice.name] = cut(snapshot.moments.exp_avg);
    tensors["exp_avg_sq." + slice.name] = cut(snapshot.moments.exp_avg_sq);
  }
  return WriteSafetensors(path, tensors);
}

absl::Status WriteState(const Snapshot& snapshot, const std::string& path) {
  nlohmann::json history = nlohmann::json::array();
  for (const v1::LossPoint& point : snapshot.history) history.push_back(PointToJson(point));
  const nlohmann::json state = {
      {"global_step", snapshot.step}, {"max_steps", snapshot.total_steps},
      {"epoch", snapshot.epoch},      {"cursor", {{"epoch", snapshot.cursor.epoch}, {"index", snapshot.cursor.index}}},
      {"seed", snapshot.seed},        {"manifest_sha256", snapshot.manifest_sha256},
      {"log_history", history},       {"versions", snapshot.versions}};
  return WriteFileAtomically(path, state.dump(2));
}

absl::Status WriteFiles(const Snapshot& snapshot, const std::string& folder) {
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(SaveAdapter(snapshot.adapter, folder));
  RETURN_IF_ERROR(WriteOptimizer(snapshot, absl::StrCat(folder, "/", kOptimizerFile)));
  RETURN_IF_ERROR(WriteState(snapshot, absl::StrCat(folder, "/", kStateFile)));
  RETURN_IF_ERROR(WriteTokenizerFiles(snapshot.tokenizer_files, folder));
  nlohmann::json checksums = nlohmann::json::object();
  for (const char* name : kHashedFiles) {
    ASSIGN_OR_RETURN(checksums[name], Sha256HexOfFile(absl::StrCat(folder, "/", name)));
  }
  for (const auto& [name, contents] : snapshot.tokenizer_files) checksums[name] = Sha256Hex(contents);
  return WriteFileAtomically(absl::StrCat(folder, "/", kChecksumsFile), checksums.dump(2));
}

absl::Status Damaged(const std::string& folder, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat(folder, ": ", what, "; the checkpoint is damaged, an earlier one can be resumed from instead"));
}

absl::Status CheckHashes(const std::string& folder) {
  const auto checksums = ReadJsonFile(absl::StrCat(folder, "/", kChecksumsFile));
  if (!checksums.ok()) return Damaged(folder, checksums.status().message());
  for (const char* name : kHashedFiles) {
    if (!checksums->is_object() || !checksums->contains(name)) {
      return Damaged(folder, absl::StrCat(kChecksumsFile, " does not name ", name));
    }
  }
  // The tokenizer's too, where it has them.
  for (const auto& [name, noted] : checksums->items()) {
    const auto path = JoinBelow(folder, name);
    if (!path.ok() || !noted.is_string()) return Damaged(folder, absl::StrCat(kChecksumsFile, ": \"", name, "\""));
    const auto hash = Sha256HexOfFile(*path);
    if (!hash.ok()) return Damaged(folder, hash.status().message());
    if (*hash != noted.get<std::string>()) {
      return Damaged(folder, absl::StrCat(name, " has hash ", *hash, ", not the one noted in ", kChecksumsFile));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> WriteCheckpoint(const Snapshot& snapshot, const std::string& parent) {
  RETURN_IF_ERROR(MakeFolders(parent));
  const std::string target = absl::StrCat(parent, "/", kFolderPrefix, snapshot.step);
  const std::string beside = absl::StrCat(parent, "/.", kFolderPrefix, snapshot.step, ".tmp");
  std::error_code error;
  fs::remove_all(beside, error);
  absl::Status written = WriteFiles(snapshot, beside);
  if (written.ok()) {
    fs::remove_all(target, error);
    written = PublishFolder(beside, target);
  }
  if (!written.ok()) {
    fs::remove_all(beside, error);
    return WithContext(written, absl::StrCat("write ", target));
  }
  return target;
}

absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& folder) {
  RETURN_IF_ERROR(CheckHashes(folder));
  LoadedCheckpoint loaded;
  ASSIGN_OR_RETURN(const nlohmann::json state, ReadJsonFile(absl::StrCat(folder, "/", kStateFile)));
  try {
    loaded.step = state.at("global_step").get<int64_t>();
    loaded.manifest_sha256 = state.at("manifest_sha256").get<std::string>();
    for (const nlohmann::json& point : state.at("log_history")) loaded.history.push_back(PointFromJson(point));
  } catch (const nlohmann::json::exception& e) {
    return Damaged(folder, absl::StrCat(kStateFile, ": ", e.what()));
  }
  const auto optimizer = SafetensorsFile::Open(absl::StrCat(folder, "/", kOptimizerFile));
  if (!optimizer.ok()) return Damaged(folder, optimizer.status().message());
  for (const std::string& name : optimizer->names()) {
    ASSIGN_OR_RETURN(loaded.optimizer[name], optimizer->Get(name));
  }
  return loaded;
}

absl::StatusOr<AdamWMoments> AssembleMoments(const LoadedCheckpoint& checkpoint,
                                             const std::vector<ParameterSlice>& parameters) {
  int64_t numel = 0;
  for (const ParameterSlice& slice : parameters) numel = std::max(numel, slice.offset + slice.numel);
  AdamWMoments moments{at::zeros({numel}, at::kFloat), at::zeros({numel}, at::kFloat)};
  for (const ParameterSlice& slice : parameters) {
    for (auto [prefix, flat] : {std::pair{"exp_avg.", moments.exp_avg}, std::pair{"exp_avg_sq.", moments.exp_avg_sq}}) {
      const auto found = checkpoint.optimizer.find(prefix + slice.name);
      if (found == checkpoint.optimizer.end() || found->second.sizes() != at::IntArrayRef(slice.shape) ||
          found->second.scalar_type() != at::kFloat) {
        return absl::DataLossError(absl::StrCat("the checkpoint's optimizer state does not fit this model: ", prefix,
                                                slice.name, " is missing or of another shape"));
      }
      flat.narrow(0, slice.offset, slice.numel).copy_(found->second.reshape({slice.numel}));
    }
  }
  return moments;
}

}  // namespace retort
