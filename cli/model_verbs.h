// generate and score: run by retort-teacher beside this binary.
#pragma once

#include "absl/strings/string_view.h"

namespace retort::cli {

bool IsModelVerb(absl::string_view verb);

// Replaces this process by `retort-teacher <verb> <flags>`; argv[1] is the verb. Returns an exit code only when that
// fails.
int RunModelVerb(int argc, char** argv);

}  // namespace retort::cli
