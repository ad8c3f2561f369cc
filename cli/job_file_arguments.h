// The arguments that name a job file, shared by submit, validate and plan.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/spec/job_file.h"

namespace retort::cli {

struct JobFileArguments {
  std::string path;
  std::vector<std::string> sets;

  void AddTo(CLI::App* verb);
};

// Loads and checks; models are looked at when the coordinator is on this machine (or none is named). On errors prints
// them (as JSON with --json) and returns false; the exit code is kExitUsage then.
bool LoadOrComplain(const JobFileArguments& arguments, const Globals& globals, JobFile* file);

// "generate, curate, train": the stages that a job has.
std::vector<std::string> StageNames(const v1::JobSpec& spec);

}  // namespace retort::cli
