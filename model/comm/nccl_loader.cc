#include "model/comm/nccl_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace retort {
namespace {

// Where the build puts it, and where an installation does.
std::vector<std::string> Candidates() {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path folder = program.parent_path();
    paths.push_back((folder / kNcclLibraryName).string());
    paths.push_back((folder.parent_path() / "lib" / kNcclLibraryName).string());
  }
  paths.push_back(kNcclLibraryName);
  return paths;
}

absl::StatusOr<NcclFactory> LoadFactory() {
  std::vector<std::string> reasons;
  for (const std::string& path : Candidates()) {
    // Never closed: communicators outlive any scope that could own it.
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      reasons.push_back(::dlerror());
      continue;
    }
    void* symbol = ::dlsym(library, kNcclFactoryName);
    if (symbol == nullptr) return absl::InternalError(absl::StrCat(path, " lacks ", kNcclFactoryName));
    return reinterpret_cast<NcclFactory>(symbol);
  }
  return absl::FailedPreconditionError(absl::StrCat("NCCL is not there: ", absl::StrJoin(reasons, "; ")));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> OpenNccl(TcpMesh& mesh, int device_index) {
  const absl::StatusOr<NcclFactory> factory = LoadFactory();
  // Either all ranks use NCCL or none: one without it would leave the others waiting.
  auto able = mesh.GatherMessages(factory.ok() ? "1" : "0", 1);
  if (!able.ok()) return able.status();
  RETURN_IF_ERROR(factory.status());
  for (size_t rank = 0; rank < able->size(); ++rank) {
    if ((*able)[rank] != "1") return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " has no NCCL"));
  }
  return (*factory)(mesh, device_index);
}

}  // namespace retort
