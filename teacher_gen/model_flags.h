// The flags that `generate` and `score` share.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "teacher_gen/model_loader.h"
#include "teacher_gen/rank_group.h"

namespace retort {

struct ModelFlags {
  ModelOptions model;
  std::string input;
  std::string output;
  int threads = 0;                // 0: as many as cores, shared by the ranks
  std::vector<std::string> argv;  // the command as it was given, for the other ranks
};

void AddModelFlags(CLI::App& app, ModelFlags& flags);
// Parses; the exit code when there is nothing more to do (help: 0, wrong flags: 2), else -1. Sets the threads.
int ParseModelFlags(CLI::App& app, ModelFlags& flags, int argc, char** argv);

// Of --seed and --temperature. CLI11 alone takes -1 for the largest seed, and NaN for a number in range.
CLI::Validator SeedCheck();
CLI::Validator TemperatureCheck();

// Starts the other ranks where there are several, else null.
absl::StatusOr<std::unique_ptr<RankGroup>> StartRanks(const ModelFlags& flags);
// The lines of the input; rank 0 reads them for all. `ranks` may be null. Errors: as ReadLines, RankGroup::Broadcast.
absl::StatusOr<std::vector<std::string>> ReadInput(const ModelFlags& flags, RankGroup* ranks);
// The exit code after `status`, which is said on standard error: a rank above 0 that lost the others says nothing, rank
// 0 does.
int ExitCode(const char* verb, const ModelFlags& flags, const absl::Status& status, int64_t line_errors);
// Where the output goes; nowhere for ranks above 0.
std::string OutputOf(const ModelFlags& flags);

}  // namespace retort
