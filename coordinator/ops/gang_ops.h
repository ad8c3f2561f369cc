// How the ranks of a training find each other. Functions over State, called under Core's lock.
//
// A gang's members are its placed tasks. When that set changes, the coordinator wants a new generation: ranks of the
// old one are told so by ReportProgress, or notice that a peer is gone, and join again. The generation forms once every
// member has joined, so that survivors and the replacement of a dead rank meet in one membership. Nobody is waited for
// without end: a dead rank has rejoin_grace to be placed again and its replacement replacement_wait to load, then the
// survivors go on (with `min` ranks at least). A rank that comes later, or is added to a gang at work, is taken in when
// it joins, and not before: its peers work on while it loads.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "coordinator/state.h"
#include "retort/v1/rendezvous_service.pb.h"

namespace retort {

// The set of placed ranks is another than before.
void OnMembershipChange(State* state, JobEntry* job);

// Notes that the rank has come. Errors: kFailedPrecondition (fenced), kInvalidArgument (no training task, a bad
// address).
absl::Status JoinGang(State* state, const v1::JoinGangRequest& request);

// The membership that answers `request`, once it has formed. Errors: kFailedPrecondition (fenced meanwhile).
absl::StatusOr<std::optional<v1::JoinGangResponse>> GangAnswer(State* state, const v1::JoinGangRequest& request);

// Forms what was waiting for time to pass, and gives up ranks that their gang has waited for too long. Returns when to
// call again.
absl::Time CheckGangs(State* state);

}  // namespace retort
