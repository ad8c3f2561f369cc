// The flags that `generate` and `score` share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "teacher_gen/model_loader.h"

namespace retort {

struct ModelFlags {
  ModelOptions model;
  std::string input;
  std::string output;
  int threads = 0;  // 0: as many as cores
};

void AddModelFlags(CLI::App& app, ModelFlags& flags);
// Parses; the exit code when there is nothing more to do (help: 0, wrong flags: 2), else -1. Sets the threads.
int ParseModelFlags(CLI::App& app, ModelFlags& flags, int argc, char** argv);

}  // namespace retort
