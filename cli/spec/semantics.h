// What a job file must hold beyond the type and range of single keys, and the defaults that depend on other keys.
#pragma once

#include "cli/spec/binder.h"
#include "cli/spec/document.h"

namespace retort::cli {

// Fills the defaults that follow from other keys (workers.max, split.train, evaluate's sampling and verifier, ...),
// removes groups that play no part, and checks how the keys go together. What follows from an error that is already
// known is not said again.
void CompleteAndCheck(BoundSpec* bound, Diagnostics* diagnostics);

}  // namespace retort::cli
