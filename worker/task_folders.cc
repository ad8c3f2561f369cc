#include "worker/task_folders.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace retort::worker {
namespace {

namespace fs = std::filesystem;

// A file that vanishes while it is counted counts nothing.
TaskFolder Describe(const fs::path& path) {
  TaskFolder folder{.name = path.filename().string()};
  struct stat info = {};
  if (lstat(path.c_str(), &info) == 0) folder.modified_at = absl::TimeFromTimespec(info.st_mtim);
  std::error_code error;
  for (fs::recursive_directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (lstat(it->path().c_str(), &info) == 0) folder.size_bytes += static_cast<int64_t>(info.st_blocks) * 512;
  }
  return folder;
}

}  // namespace

std::vector<std::string> ChooseTaskFoldersToDelete(std::vector<TaskFolder> folders, const std::set<std::string>& in_use,
                                                   const TaskFolderLimits& limits) {
  folders.erase(std::remove_if(folders.begin(), folders.end(),
                               [&](const TaskFolder& folder) { return in_use.count(folder.name) > 0; }),
                folders.end());
  std::sort(folders.begin(), folders.end(), [](const TaskFolder& a, const TaskFolder& b) {
    return a.modified_at != b.modified_at ? a.modified_at > b.modified_at : a.name < b.name;
  });
  std::vector<std::string> doomed;
  int kept = 0;
  int64_t kept_bytes = 0;
  for (const TaskFolder& folder : folders) {
    kept_bytes += folder.size_bytes;
    if (doomed.empty() && kept < limits.keep && (kept == 0 || kept_bytes <= limits.max_bytes)) {
      ++kept;
    } else {
      doomed.push_back(folder.name);
    }
  }
  return doomed;
}

absl::Status CleanTaskFolders(const std::string& tasks_folder, const std::function<std::set<std::string>()>& in_use,
                              const TaskFolderLimits& limits) {
  std::vector<TaskFolder> folders;
  std::error_code error;
  for (fs::directory_iterator it(tasks_folder, error), end; !error && it != end; it.increment(error))
    folders.push_back(Describe(it->path()));
  if (error) return absl::InternalError(absl::StrCat("list ", tasks_folder, ": ", error.message()));
  for (const std::string& name : ChooseTaskFoldersToDelete(std::move(folders), in_use(), limits)) {
    fs::remove_all(fs::path(tasks_folder) / name, error);
    if (error) return absl::InternalError(absl::StrCat("delete ", tasks_folder, "/", name, ": ", error.message()));
    spdlog::info("task_folder_deleted name={}", name);
  }
  return absl::OkStatus();
}

}  // namespace retort::worker
