// Bounds the disk that the work folders of ended tasks take.
#pragma once

#include <cstdint>
#include <functional>
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

// Names of those to delete: ended ones, oldest first, until what is left keeps the limits. The newest stays however
// large it is: it is the one that somebody wants to look at. Pure.
std::vector<std::string> ChooseTaskFoldersToDelete(std::vector<TaskFolder> folders, const std::set<std::string>& in_use,
                                                   const TaskFolderLimits& limits);

// Applies it to the folders below `tasks_folder`. `in_use` is asked after they were listed, so that it knows of every
// folder in the list that a task was given meanwhile.
absl::Status CleanTaskFolders(const std::string& tasks_folder, const std::function<std::set<std::string>()>& in_use,
                              const TaskFolderLimits& limits);

}  // namespace retort::worker
