#include "cli/output_folder.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/render/job_json.h"
#include "cli/render/names.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/json.h"
#include "common/status.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;

struct Item {
  std::string name;  // path below the output folder, "checkpoints/checkpoint-120"
  std::string artifact_id;
};

// Items that the job has and its output folder should hold.
std::vector<Item> ItemsOf(const v1::Job& job) {
  std::vector<Item> items;
  for (const v1::JobArtifact& artifact : job.result().artifacts()) {
    const std::string& name = artifact.name();
    if (name == "adapter" && !job.spec().export_().adapter()) continue;
    if (name == "dataset" || name == "adapter" || name == "merged" || name == "gguf") {
      items.push_back({name, artifact.artifact_id()});
    } else if (absl::StartsWith(name, "checkpoint-")) {
      items.push_back({absl::StrCat("checkpoints/", name), artifact.artifact_id()});
    }
  }
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.name < b.name; });
  return items;
}

absl::Status Remove(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoStatus(absl::StrCat("remove ", path.string()), error.value());
  return absl::OkStatus();
}

// What an earlier result left there and this one does not have.
absl::Status RemoveOthers(const fs::path& folder, const std::vector<Item>& items) {
  const auto wanted = [&](const std::string& name) {
    return std::any_of(items.begin(), items.end(), [&](const Item& item) { return item.name == name; });
  };
  for (const char* name : {"dataset", "adapter", "merged", "gguf"}) {
    if (!wanted(name)) RETURN_IF_ERROR(Remove(folder / name));
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder / "checkpoints", error)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "checkpoint-") && !wanted("checkpoints/" + name)) RETURN_IF_ERROR(Remove(entry.path()));
  }
  return absl::OkStatus();
}

absl::Status WriteSpec(const v1::Job& job, const fs::path& folder) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(job.spec(), &text, options).ok()) {
    return absl::InternalError("the job's spec cannot be written as JSON");
  }
  return WriteFileAtomically((folder / "spec.json").string(), text);
}

}  // namespace

absl::StatusOr<std::string> JobOfOutputFolder(const std::string& folder) {
  const std::string path = (fs::path(folder) / "result.json").string();
  std::error_code error;
  if (!fs::exists(path, error)) return std::string();
  ASSIGN_OR_RETURN(const nlohmann::json result, ReadJsonFile(path));
  const auto job = result.is_object() ? result.find("job") : result.end();
  if (job == result.end() || !job->is_string())
    return absl::InvalidArgumentError(absl::StrCat(path, ": job: wants a string"));
  return job->get<std::string>();
}

absl::Status CheckOutputFolder(const std::string& folder, bool overwrite) {
  std::error_code error;
  if (overwrite || !fs::exists(fs::path(folder) / "result.json", error)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      folder, " already holds a result (result.json); give --overwrite to replace it, or another output_dir"));
}

absl::Status FetchFolder(const std::string& artifact_id, const std::string& target, ArtifactClient* artifacts) {
  const fs::path path(target);
  RETURN_IF_ERROR(MakeFolders(path.parent_path().string()));
  const absl::Status status = artifacts->GetFolder(artifact_id, target);
  if (!absl::IsAlreadyExists(status)) return status;
  // Something else stands there: fetch beside it, then swap.
  const std::string suffix = RandomHex(8);
  const std::string incoming = absl::StrCat(path.parent_path().string(), "/.incoming-", suffix);
  const std::string outgoing = absl::StrCat(path.parent_path().string(), "/.outgoing-", suffix);
  RETURN_IF_ERROR(artifacts->GetFolder(artifact_id, incoming));
  std::error_code error;
  fs::rename(path, outgoing, error);
  if (error) return ErrnoStatus(absl::StrCat("rename ", target), error.value());
  fs::rename(incoming, path, error);
  if (error) return ErrnoStatus(absl::StrCat("rename ", incoming, " to ", target), error.value());
  return Remove(outgoing);
}

absl::StatusOr<std::vector<std::string>> FillOutputFolder(const v1::Job& job, const std::string& folder,
                                                          ArtifactClient* artifacts) {
  const fs::path root(folder);
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(Remove(root / "result.json"));
  const std::vector<Item> items = ItemsOf(job);
  std::vector<std::string> names;
  for (const Item& item : items) {
    ASSIGN_OR_RETURN(const std::string target, JoinBelow(folder, item.name));
    RETURN_IF_ERROR(WithContext(FetchFolder(item.artifact_id, target, artifacts), absl::StrCat("fetch ", item.name)));
    names.push_back(item.name + "/");
  }
  RETURN_IF_ERROR(RemoveOthers(root, items));
  const bool has_adapter =
      std::any_of(items.begin(), items.end(), [](const Item& item) { return item.name == "adapter"; });
  if (has_adapter && !job.result().adapter_sha256().empty()) {
    const std::string file = (root / "adapter/adapter_model.safetensors").string();
    ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(file));
    if (sha256 != job.result().adapter_sha256()) {
      return absl::DataLossError(
          absl::StrCat(file, " has sha256 ", sha256, ", the job made ", job.result().adapter_sha256()));
    }
  }
  RETURN_IF_ERROR(WriteSpec(job, root));
  names.push_back("spec.json");
  if (HasEnded(job.state())) {
    RETURN_IF_ERROR(WriteFileAtomically((root / "result.json").string(), ResultJson(job).dump(2) + "\n"));
    names.insert(names.begin(), "result.json");
  }
  return names;
}

}  // namespace retort::cli
