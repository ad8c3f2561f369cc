#include "coordinator/transitions.h"

#include <algorithm>
#include <utility>

namespace retort {
namespace {

template <typename State>
using Edge = std::pair<State, State>;

constexpr Edge<v1::JobState> kJobEdges[] = {
    {v1::JOB_STATE_QUEUED, v1::JOB_STATE_RUNNING},   {v1::JOB_STATE_QUEUED, v1::JOB_STATE_FAILED},
    {v1::JOB_STATE_QUEUED, v1::JOB_STATE_CANCELLED}, {v1::JOB_STATE_RUNNING, v1::JOB_STATE_SUCCEEDED},
    {v1::JOB_STATE_RUNNING, v1::JOB_STATE_FAILED},   {v1::JOB_STATE_RUNNING, v1::JOB_STATE_CANCELLED},
    {v1::JOB_STATE_FAILED, v1::JOB_STATE_QUEUED},    {v1::JOB_STATE_CANCELLED, v1::JOB_STATE_QUEUED},
};

constexpr Edge<v1::StageState> kStageEdges[] = {
    {v1::STAGE_STATE_PENDING, v1::STAGE_STATE_RUNNING},   {v1::STAGE_STATE_PENDING, v1::STAGE_STATE_CANCELLED},
    {v1::STAGE_STATE_RUNNING, v1::STAGE_STATE_SUCCEEDED}, {v1::STAGE_STATE_RUNNING, v1::STAGE_STATE_FAILED},
    {v1::STAGE_STATE_RUNNING, v1::STAGE_STATE_CANCELLED}, {v1::STAGE_STATE_FAILED, v1::STAGE_STATE_PENDING},
    {v1::STAGE_STATE_CANCELLED, v1::STAGE_STATE_PENDING},
};

// SUCCEEDED -> WAITING is a rank of a resumed training whose final result never came.
constexpr Edge<v1::TaskState> kTaskEdges[] = {
    {v1::TASK_STATE_WAITING, v1::TASK_STATE_ASSIGNED},  {v1::TASK_STATE_WAITING, v1::TASK_STATE_FAILED},
    {v1::TASK_STATE_WAITING, v1::TASK_STATE_CANCELLED}, {v1::TASK_STATE_ASSIGNED, v1::TASK_STATE_RUNNING},
    {v1::TASK_STATE_ASSIGNED, v1::TASK_STATE_WAITING},  {v1::TASK_STATE_ASSIGNED, v1::TASK_STATE_SUCCEEDED},
    {v1::TASK_STATE_ASSIGNED, v1::TASK_STATE_FAILED},   {v1::TASK_STATE_ASSIGNED, v1::TASK_STATE_CANCELLED},
    {v1::TASK_STATE_RUNNING, v1::TASK_STATE_WAITING},   {v1::TASK_STATE_RUNNING, v1::TASK_STATE_SUCCEEDED},
    {v1::TASK_STATE_RUNNING, v1::TASK_STATE_FAILED},    {v1::TASK_STATE_RUNNING, v1::TASK_STATE_CANCELLED},
    {v1::TASK_STATE_FAILED, v1::TASK_STATE_WAITING},    {v1::TASK_STATE_CANCELLED, v1::TASK_STATE_WAITING},
    {v1::TASK_STATE_SUCCEEDED, v1::TASK_STATE_WAITING},
};

template <typename Edges, typename State>
bool Contains(const Edges& edges, State from, State to) {
  return std::find(std::begin(edges), std::end(edges), Edge<State>{from, to}) != std::end(edges);
}

}  // namespace

bool IsLegal(v1::JobState from, v1::JobState to) { return Contains(kJobEdges, from, to); }
bool IsLegal(v1::StageState from, v1::StageState to) { return Contains(kStageEdges, from, to); }
bool IsLegal(v1::TaskState from, v1::TaskState to) { return Contains(kTaskEdges, from, to); }

absl::string_view ShortName(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_QUEUED:
      return "queued";
    case v1::JOB_STATE_RUNNING:
      return "running";
    case v1::JOB_STATE_SUCCEEDED:
      return "succeeded";
    case v1::JOB_STATE_FAILED:
      return "failed";
    case v1::JOB_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unspecified";
  }
}

absl::string_view ShortName(v1::StageState state) {
  switch (state) {
    case v1::STAGE_STATE_PENDING:
      return "pending";
    case v1::STAGE_STATE_RUNNING:
      return "running";
    case v1::STAGE_STATE_SUCCEEDED:
      return "succeeded";
    case v1::STAGE_STATE_FAILED:
      return "failed";
    case v1::STAGE_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unspecified";
  }
}

absl::string_view ShortName(v1::TaskState state) {
  switch (state) {
    case v1::TASK_STATE_WAITING:
      return "waiting";
    case v1::TASK_STATE_ASSIGNED:
      return "assigned";
    case v1::TASK_STATE_RUNNING:
      return "running";
    case v1::TASK_STATE_SUCCEEDED:
      return "succeeded";
    case v1::TASK_STATE_FAILED:
      return "failed";
    case v1::TASK_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unspecified";
  }
}

absl::string_view ShortName(v1::Stage stage) {
  switch (stage) {
    case v1::STAGE_GENERATE:
      return "generate";
    case v1::STAGE_CURATE:
      return "curate";
    case v1::STAGE_TRAIN:
      return "train";
    case v1::STAGE_EVALUATE:
      return "evaluate";
    case v1::STAGE_EXPORT:
      return "export";
    default:
      return "unspecified";
  }
}

bool HasEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

bool IsPlaced(v1::TaskState state) { return state == v1::TASK_STATE_ASSIGNED || state == v1::TASK_STATE_RUNNING; }

}  // namespace retort
