#include "model/safetensors_source.h"

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/safetensors.h"

namespace retort {
namespace {

constexpr size_t kMaxShards = 10'000;

class SafetensorsFolder final : public TensorSource {
 public:
  absl::Status Open(const std::string& folder);

  std::vector<std::string> Names() const override {
    if (single_) return single_->names();
    std::vector<std::string> names;
    for (const auto& [name, file] : file_of_) names.push_back(name);
    return names;
  }
  bool Has(const std::string& name) const override { return single_ ? single_->Has(name) : file_of_.contains(name); }
  absl::StatusOr<at::Tensor> Get(const std::string& name) override;

 private:
  std::string folder_;
  std::optional<SafetensorsFile> single_;
  std::map<std::string, std::string> file_of_;  // tensor -> shard
  std::map<std::string, SafetensorsFile> shards_;
};

absl::Status SafetensorsFolder::Open(const std::string& folder) {
  folder_ = folder;
  const std::string single = absl::StrCat(folder, "/model.safetensors");
  const std::string index_path = absl::StrCat(single, ".index.json");
  std::error_code error;
  if (std::filesystem::exists(single, error)) {
    ASSIGN_OR_RETURN(single_, SafetensorsFile::Open(single));
    return absl::OkStatus();
  }
  if (!std::filesystem::exists(index_path, error)) {
    return absl::NotFoundError(absl::StrCat(
        "no weights in ", folder,
        ": neither model.safetensors nor model.safetensors.index.json is there; give a Hugging Face folder "
        "with safetensors weights"));
  }
  ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(index_path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map is missing or no object"));
  }
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map.", name, " is no file name"));
    }
    const auto path = JoinBelow(folder, file.get<std::string>());
    if (!path.ok()) return WithContext(path.status(), absl::StrCat(index_path, ": weight_map.", name));
    file_of_[name] = *path;
  }
  return absl::OkStatus();
}

absl::StatusOr<at::Tensor> SafetensorsFolder::Get(const std::string& name) {
  if (single_) return single_->Get(name);
  const auto file = file_of_.find(name);
  if (file == file_of_.end()) {
    return absl::NotFoundError(absl::StrCat(folder_, "/model.safetensors.index.json: no tensor \"", name, "\""));
  }
  auto shard = shards_.find(file->second);
  if (shard == shards_.end()) {
    if (shards_.size() >= kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat(folder_, ": over ", kMaxShards, " shards"));
    }
    ASSIGN_OR_RETURN(SafetensorsFile opened, SafetensorsFile::Open(file->second));
    shard = shards_.emplace(file->second, std::move(opened)).first;
  }
  return shard->second.Get(name);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TensorSource>> OpenSafetensorsFolder(const std::string& folder) {
  auto source = std::make_unique<SafetensorsFolder>();
  RETURN_IF_ERROR(source->Open(folder));
  return source;
}

}  // namespace retort
