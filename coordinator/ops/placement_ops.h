// Between State and the scheduler: a snapshot out, a plan back in. Functions over State, called under Core's lock.
#pragma once

#include "coordinator/scheduler.h"
#include "coordinator/state.h"

namespace retort {

Snapshot TakeSnapshot(const State& state);

// Carries the plan out. False, and nothing has changed: the state is no longer the one it was made for.
bool CommitPlan(State* state, const Plan& plan);

}  // namespace retort
