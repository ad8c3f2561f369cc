// Bounds the disk that the work folders of ended tasks take.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace retort::worker {

struct TaskFolder {
  std::string name;  // "<task_id>.<epoch>"
  absl::Time modified_at;
  int64_t size_bytes = 0;
};

struct TaskFolderLimits {
  int keep = 16;                         // newest ones
  int64_t max_bytes = int64_t{2} << 30;  // together
};

// Names of those to delete: ended ones, oldest first, until what is left keeps the limits. Pure.
std::vector<std::string> ChooseTaskFoldersToDelete(std::vector<TaskFolder> folders, const std::set<std::string>& in_use,
                                                   const TaskFolderLimits& limits);

// Applies it to the folders below `tasks_folder`.
absl::Status CleanTaskFolders(const std::string& tasks_folder, const std::set<std::string>& in_use,
                              const TaskFolderLimits& limits);

}  // namespace retort::worker
