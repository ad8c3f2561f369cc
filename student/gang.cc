#include "student/gang.h"

#include <ATen/Functions.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort {

absl::Status Gang::Note(absl::Status status) {
  broken_ = broken_ || !status.ok();
  return status;
}

absl::StatusOr<std::unique_ptr<Gang>> Gang::Form(const TcpListener& listener, const v1::JoinGangResponse& membership,
                                                 const GangOptions& options) {
  if (membership.rank() < 0 || membership.rank() >= membership.members_size()) {
    return absl::InternalError(
        absl::StrCat("the coordinator names this rank ", membership.rank(), " of ", membership.members_size()));
  }
  TcpMeshOptions mesh;
  mesh.rank = membership.rank();
  for (const v1::GangMember& member : membership.members()) mesh.addresses.push_back(member.address());
  mesh.generation = membership.generation();
  mesh.secret = membership.group_secret();
  if (options.superseded) {
    mesh.superseded = [superseded = options.superseded, generation = membership.generation()] {
      return superseded(generation);
    };
  }
  std::unique_ptr<Gang> gang(new Gang());
  gang->generation_ = membership.generation();
  gang->plain_all_reduce_ = options.plain_all_reduce;
  ASSIGN_OR_RETURN(gang->mesh_, TcpMesh::Connect(listener, std::move(mesh)));
  if (options.device.is_cuda() && (gang->size() > 1 || options.plain_all_reduce)) {
    absl::StatusOr<std::unique_ptr<DeviceCommunicator>> device = OpenNccl(*gang->mesh_, options.device.index());
    if (device.ok()) {
      gang->device_ = *std::move(device);
    } else if (options.plain_all_reduce || !absl::IsFailedPrecondition(device.status())) {
      return device.status();
    } else {
      spdlog::warn("gang_without_nccl generation={} reason=\"{}\"", gang->generation_,
                   std::string(device.status().message()));
    }
  } else if (options.plain_all_reduce) {
    return absl::FailedPreconditionError(
        "student.training.reduction: nccl needs a GPU; leave it out, or set it to \"tree\"");
  }
  Communicator& tensors = gang->device_ != nullptr ? static_cast<Communicator&>(*gang->device_) : *gang->mesh_;
  gang->tree_ = std::make_unique<TreeReduction>(tensors, options.numel, options.device, gang->device_ == nullptr);
  if (options.plain_all_reduce) {
    const auto type = at::TensorOptions().dtype(at::kFloat).device(options.device);
    gang->leaf_ = at::empty({options.numel}, type);
    gang->sum_ = at::empty({options.numel}, type);
  }
  return gang;
}

absl::StatusOr<std::vector<std::string>> Gang::GatherMessages(const std::string& mine, size_t max_bytes) {
  auto messages = mesh_->GatherMessages(mine, max_bytes);
  RETURN_IF_ERROR(Note(messages.status()));
  return messages;
}

absl::Status Gang::SendFrom(int source, const std::vector<bool>& wanted, MutableBytes bytes) {
  return Note(retort::SendFrom(*mesh_, source, wanted, bytes));
}

IndexRange Gang::Begin(int64_t micro_batches) {
  if (plain_all_reduce_) {
    sum_.zero_();
    return BalancedRange(micro_batches, size(), rank());
  }
  return tree_->Begin(micro_batches);
}

at::Tensor& Gang::Leaf() { return plain_all_reduce_ ? leaf_ : tree_->Leaf(); }

void Gang::Push() {
  if (plain_all_reduce_) {
    sum_.add_(leaf_);
  } else {
    tree_->Push();
  }
}

absl::Status Gang::Finish(at::Tensor& sum) {
  if (!plain_all_reduce_) return Note(tree_->Finish(sum));
  RETURN_IF_ERROR(Note(device_->AllReduceSum(sum_.data_ptr<float>(), sum_.numel())));
  sum.copy_(sum_);
  return absl::OkStatus();
}

}  // namespace retort
