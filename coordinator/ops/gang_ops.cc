#include "coordinator/ops/gang_ops.h"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/ops/task_ops.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr size_t kMaxAddressBytes = 300;
constexpr size_t kSecretBytes = 32;

std::string NewSecret() {
  std::string secret(kSecretBytes, '\0');
  RETORT_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(secret.data()), static_cast<int>(secret.size())) == 1);
  return secret;
}

GangEntry& GangOf(State* state, const JobEntry& job) {
  GangEntry& gang = state->gangs()[job.record.job_id()];
  if (gang.job_id.empty()) {
    gang.job_id = job.record.job_id();
    gang.changed_at = state->Now();
  }
  return gang;
}

bool IsRank(const TaskEntry& task) { return task.record.stage() == v1::STAGE_TRAIN; }

bool SameJoin(const GangJoin& join, const v1::JoinGangRequest& request) {
  return join.epoch == request.ref().epoch() && join.address == request.address() &&
         join.completed_steps == request.completed_steps();
}

// The membership that `request` waits for, if it has formed.
bool IsAnswered(const GangEntry& gang, const v1::JoinGangRequest& request) {
  if (gang.formed.generation <= request.last_generation()) return false;
  const auto member = gang.formed.members.find(request.ref().task_id());
  return member != gang.formed.members.end() && SameJoin(member->second, request);
}

// Until when the gang waits for a dead rank to be placed again.
absl::Time WaitsForReplacementUntil(const State& state, const JobEntry& job) {
  absl::Time until = absl::InfinitePast();
  for (const auto& [task_id, task] : job.tasks) {
    if (!IsRank(task) || task.record.state() != v1::TASK_STATE_WAITING) continue;
    const absl::Time end = task.lost_at + state.options().rejoin_grace;
    if (FromProto(task.record.not_before()) < end) until = std::max(until, end);
  }
  return until;
}

// Until when a gang that has worked before waits for a placed rank that has not come yet.
absl::Time WaitsForRankUntil(const State& state, const GangEntry& gang, const TaskEntry& task) {
  if (task.grows) return absl::InfinitePast();
  if (task.joined || gang.formed.generation == 0) return absl::InfiniteFuture();
  return task.placed_at + state.options().replacement_wait;
}

void TryForm(State* state, JobEntry* job, GangEntry* gang) {
  const internal::StageRecord* stage = RunningStage(*job);
  if (stage == nullptr || stage->stage() != v1::STAGE_TRAIN) return;
  int present = 0;
  int completed = 0;
  std::vector<TaskEntry*> late;
  for (auto& [task_id, task] : job->tasks) {
    if (!IsRank(task)) continue;
    completed += task.record.state() == v1::TASK_STATE_SUCCEEDED;
    if (!IsPlaced(task.record.state())) continue;
    const auto joined = gang->joined.find(task_id);
    if (joined != gang->joined.end() && joined->second.epoch == task.record.epoch()) {
      ++present;
    } else if (WaitsForRankUntil(*state, *gang, task) <= state->Now()) {
      late.push_back(&task);
    } else {
      return;
    }
  }
  if (present == 0 || present + completed < RunningGroup(*job, *stage).min) return;
  if (state->Now() < WaitsForReplacementUntil(*state, *job)) return;
  for (TaskEntry* task : late) task->grows = true;
  if (gang->wanted_generation <= gang->formed.generation) gang->wanted_generation = state->NextEpoch();
  gang->formed.generation = gang->wanted_generation;
  gang->formed.secret = NewSecret();
  gang->formed.members = std::move(gang->joined);
  gang->joined.clear();
  gang->first_joined_at = absl::InfiniteFuture();
  state->TouchSchedule();
  spdlog::info("gang_formed job_id={} generation={} ranks={}", gang->job_id, gang->formed.generation,
               gang->formed.members.size());
}

// Whether the gang may give this rank up for not joining.
bool Hangs(const State& state, const GangEntry& gang, const TaskEntry& task, absl::Time* until) {
  const absl::Time since = std::max({gang.first_joined_at, gang.changed_at, task.placed_at, task.moved_at});
  *until = since + (task.joined ? state.options().join_timeout : state.options().first_join_timeout);
  return *until <= state.Now();
}

}  // namespace

void OnMembershipChange(State* state, JobEntry* job) {
  GangEntry& gang = GangOf(state, *job);
  gang.wanted_generation = state->NextEpoch();
  gang.changed_at = state->Now();
  for (auto it = gang.joined.begin(); it != gang.joined.end();) {
    const auto task = job->tasks.find(it->first);
    const bool current = task != job->tasks.end() && IsPlaced(task->second.record.state()) &&
                         task->second.record.epoch() == it->second.epoch;
    it = current ? std::next(it) : gang.joined.erase(it);
  }
  state->TouchSchedule();
  TryForm(state, job, &gang);
}

absl::Status JoinGang(State* state, const v1::JoinGangRequest& request) {
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  RETURN_IF_ERROR(state->CheckFence(request.ref(), &job, &task));
  if (!IsRank(*task)) return absl::InvalidArgumentError(absl::StrCat(request.ref().task_id(), " is no training task"));
  if (request.address().empty() || request.address().size() > kMaxAddressBytes) {
    return absl::InvalidArgumentError("address: must be the host:port where this rank listens");
  }
  MarkHeard(state, job, task);
  GangEntry& gang = GangOf(state, *job);
  task->joined = true;
  if (std::exchange(task->grows, false)) {
    gang.wanted_generation = state->NextEpoch();
    gang.changed_at = state->Now();
  }
  if (IsAnswered(gang, request)) return absl::OkStatus();
  // Nobody wants a generation that this rank has not seen, so it asks for one itself: it lost a peer's connection, or
  // the coordinator was restarted.
  if (gang.wanted_generation <= request.last_generation() || gang.wanted_generation <= gang.formed.generation) {
    gang.wanted_generation = state->NextEpoch();
    gang.changed_at = state->Now();
  }
  gang.joined[request.ref().task_id()] = {request.ref().epoch(), request.address(), request.completed_steps()};
  gang.first_joined_at = std::min(gang.first_joined_at, state->Now());
  TryForm(state, job, &gang);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<v1::JoinGangResponse>> GangAnswer(State* state, const v1::JoinGangRequest& request) {
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  RETURN_IF_ERROR(state->CheckFence(request.ref(), &job, &task));
  const GangEntry& gang = GangOf(state, *job);
  if (!IsAnswered(gang, request)) return std::optional<v1::JoinGangResponse>();
  v1::JoinGangResponse response;
  response.set_generation(gang.formed.generation);
  response.set_group_secret(gang.formed.secret);
  for (const auto& [task_id, join] : gang.formed.members) {
    if (task_id == request.ref().task_id()) response.set_rank(response.members_size());
    v1::GangMember& member = *response.add_members();
    member.mutable_ref()->set_task_id(task_id);
    member.mutable_ref()->set_epoch(join.epoch);
    member.set_address(join.address);
    member.set_completed_steps(join.completed_steps);
  }
  return std::optional<v1::JoinGangResponse>(std::move(response));
}

absl::Time CheckGangs(State* state) {
  absl::Time wake_at = absl::InfiniteFuture();
  std::vector<std::string> job_ids;
  for (const auto& [job_id, gang] : state->gangs()) job_ids.push_back(job_id);
  for (const std::string& job_id : job_ids) {
    JobEntry* job = state->FindJob(job_id);
    GangEntry& gang = state->gangs()[job_id];
    if (gang.joined.empty()) continue;
    std::vector<std::string> hanging;
    for (const auto& [task_id, task] : job->tasks) {
      if (!IsRank(task) || !IsPlaced(task.record.state()) || gang.joined.count(task_id) > 0) continue;
      absl::Time until;
      if (Hangs(*state, gang, task, &until)) {
        hanging.push_back(task_id);
      } else {
        wake_at = std::min(wake_at, until);
        const absl::Time late_at = WaitsForRankUntil(*state, gang, task);
        if (late_at > state->Now()) wake_at = std::min(wake_at, late_at);
      }
    }
    for (const std::string& task_id : hanging) {
      TaskEntry& task = job->tasks[task_id];
      if (!IsPlaced(task.record.state())) continue;
      LosePlacement(state, job, &task, "hangs: made no step and did not join its gang while its peers waited for it");
    }
    const auto found = state->gangs().find(job_id);  // a spent budget ends the job, and its gang
    if (found == state->gangs().end()) continue;
    TryForm(state, job, &found->second);
    const absl::Time replacement = WaitsForReplacementUntil(*state, *job);
    if (!found->second.joined.empty() && replacement > state->Now()) wake_at = std::min(wake_at, replacement);
  }
  return wake_at;
}

}  // namespace retort
