#include "student/state_sync.h"

#include <ATen/Functions.h>
#include <spdlog/spdlog.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/status.h"
#include "retort/v1/task_service.pb.h"

namespace retort {
namespace {

constexpr size_t kMaxHistoryBytes = size_t{256} << 20;

// Parameters, first and second moments, end to end on the host: [3 * numel], f32.
at::Tensor Flatten(Trainer& trainer) {
  return at::cat(
      {trainer.model().flat_parameters().cpu(), trainer.moments().exp_avg.cpu(), trainer.moments().exp_avg_sq.cpu()});
}

std::string EncodeHistory(const std::vector<v1::LossPoint>& history) {
  v1::Checkpoint holder;
  for (const v1::LossPoint& point : history) *holder.add_losses() = point;
  return holder.SerializeAsString();
}

std::string DigestOf(int64_t step, const at::Tensor& tensors, const std::string& history) {
  Sha256 hash;
  hash.UpdateU64(static_cast<uint64_t>(step));
  hash.Update(tensors.const_data_ptr(), tensors.nbytes());
  hash.UpdateField(history);
  return ToBytes(hash.Finish());
}

}  // namespace

absl::Status SyncState(Gang& gang, Trainer& trainer) {
  if (gang.size() == 1) return absl::OkStatus();
  at::Tensor tensors = Flatten(trainer);
  const std::string history = EncodeHistory(trainer.history());
  const int64_t own_step = trainer.step();
  std::string offer(sizeof(int64_t), '\0');
  std::memcpy(offer.data(), &own_step, sizeof(int64_t));
  offer += DigestOf(own_step, tensors, history);
  ASSIGN_OR_RETURN(const std::vector<std::string> offers, gang.GatherMessages(offer, offer.size()));

  std::vector<int64_t> steps;
  for (const std::string& other : offers) {
    if (other.size() != offer.size()) return absl::InternalError("a rank offers a state that is none");
    int64_t step = 0;
    std::memcpy(&step, other.data(), sizeof(int64_t));
    steps.push_back(step);
  }
  const int source = static_cast<int>(std::max_element(steps.begin(), steps.end()) - steps.begin());
  std::vector<bool> wanted;
  bool any = false;
  for (const std::string& other : offers) {
    wanted.push_back(other != offers[source]);
    any = any || wanted.back();
  }
  if (!any) return absl::OkStatus();

  ASSIGN_OR_RETURN(const std::vector<std::string> histories,
                   gang.GatherMessages(gang.rank() == source ? history : "", kMaxHistoryBytes));
  RETURN_IF_ERROR(gang.SendFrom(source, wanted, {tensors.data_ptr(), tensors.nbytes()}));
  if (!wanted[gang.rank()]) return absl::OkStatus();

  v1::Checkpoint received;
  if (!received.ParseFromString(histories[source])) return absl::InternalError("a rank sent a history that is none");
  if (DigestOf(steps[source], tensors, histories[source]) != offers[source].substr(sizeof(int64_t))) {
    return absl::InternalError(absl::StrCat("the state of rank ", source, " changed on its way"));
  }
  const int64_t numel = trainer.numel();
  RETURN_IF_ERROR(trainer.Restore(steps[source], tensors.narrow(0, 0, numel),
                                  {tensors.narrow(0, numel, numel), tensors.narrow(0, 2 * numel, numel)},
                                  {received.losses().begin(), received.losses().end()}));
  spdlog::info("state_received generation={} from_rank={} steps={} had_steps={}", gang.generation(), source,
               steps[source], own_step);
  return absl::OkStatus();
}

}  // namespace retort
