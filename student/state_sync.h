// The first thing a new gang does: everybody gets the state of the member that has most of it.
#pragma once

#include "absl/status/status.h"
#include "student/gang.h"
#include "student/trainer.h"

namespace retort {

// The lowest rank among those with most completed steps is the source; whoever's state differs from its (by hash, so
// also at the same number of steps) takes it over: parameters, optimizer moments, step, loss history. A state is
// replaced only once all of the new one is there. Errors: the gang's.
absl::Status SyncState(Gang& gang, Trainer& trainer);

}  // namespace retort
