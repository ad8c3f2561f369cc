#include "model/comm/nccl_loader.h"

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/plugin.h"
#include "common/status.h"
#include "model/comm/nccl_plugin.h"

namespace retort {
namespace {

constexpr char kLibraryName[] = "libretort_nccl.so";
constexpr char kSymbolName[] = "RetortNcclPlugin";
constexpr size_t kErrorBytes = 512;

absl::Status ToStatus(int code, const char* error) {
  switch (code) {
    case RETORT_NCCL_OK:
      return absl::OkStatus();
    case RETORT_NCCL_PEER:
      return absl::UnavailableError(error);
    case RETORT_NCCL_TIMEOUT:
      return absl::DeadlineExceededError(error);
    default:
      return absl::InternalError(error);
  }
}

absl::StatusOr<const RetortNcclFunctions*> LoadPlugin() {
  std::string reasons;
  void* address = OpenPlugin(kLibraryName, kSymbolName, reasons);
  if (address == nullptr) return absl::FailedPreconditionError(absl::StrCat("NCCL is not there: ", reasons));
  return reinterpret_cast<const RetortNcclFunctions* (*)()>(address)();
}

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(TcpMesh& mesh, const RetortNcclFunctions& functions) : mesh_(mesh), functions_(functions) {}
  ~NcclCommunicator() override { functions_.close(nccl_); }

  absl::Status Open(int device_index, const std::string& id) {
    RETORT_CHECK(id.size() == RETORT_NCCL_ID_BYTES);
    RetortNcclOptions options = {};
    options.rank = rank();
    options.size = size();
    options.device_index = device_index < 0 ? 0 : device_index;
    options.timeout_ms = absl::ToInt64Milliseconds(mesh_.silence_timeout());
    options.cancelled = [](void* self) { return static_cast<NcclCommunicator*>(self)->Cancelled() ? 1 : 0; };
    options.context = this;
    std::memcpy(options.id, id.data(), id.size());
    char error[kErrorBytes] = {};
    return ToStatus(functions_.open(&options, &nccl_, error, sizeof(error)), error);
  }

  int rank() const override { return mesh_.rank(); }
  int size() const override { return mesh_.size(); }

  absl::Status Exchange(absl::Span<const ConstBytes> send, absl::Span<const MutableBytes> receive) override {
    const auto ranks = static_cast<size_t>(size());
    RETORT_CHECK(send.size() == ranks && receive.size() == ranks);
    std::vector<const void*> from(ranks);
    std::vector<void*> to(ranks);
    std::vector<size_t> from_bytes(ranks);
    std::vector<size_t> to_bytes(ranks);
    for (size_t i = 0; i < ranks; ++i) {
      from[i] = send[i].data;
      from_bytes[i] = send[i].size_bytes;
      to[i] = receive[i].data;
      to_bytes[i] = receive[i].size_bytes;
    }
    char error[kErrorBytes] = {};
    return ToStatus(
        functions_.exchange(nccl_, from.data(), from_bytes.data(), to.data(), to_bytes.data(), error, sizeof(error)),
        error);
  }

  absl::Status AllReduceSum(float* values, int64_t count) override {
    char error[kErrorBytes] = {};
    return ToStatus(functions_.all_reduce_sum(nccl_, values, static_cast<size_t>(count), error, sizeof(error)), error);
  }

  void Abort() override { aborted_ = true; }

 private:
  bool Cancelled() const { return aborted_ || !mesh_.CheckPeers().ok(); }

  TcpMesh& mesh_;
  const RetortNcclFunctions& functions_;
  RetortNccl* nccl_ = nullptr;
  std::atomic<bool> aborted_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> OpenNccl(TcpMesh& mesh, int device_index) {
  const absl::StatusOr<const RetortNcclFunctions*> functions = LoadPlugin();
  std::string id(RETORT_NCCL_ID_BYTES, '\0');
  absl::Status ready = functions.status();
  if (ready.ok() && mesh.rank() == 0) {
    char error[kErrorBytes] = {};
    ready = ToStatus((*functions)->new_id(id.data(), error, sizeof(error)), error);
  }
  // Either all ranks use NCCL or none: one without it would leave the others waiting.
  const std::string mine = ready.ok() ? id : "";
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, mesh.GatherMessages(mine, RETORT_NCCL_ID_BYTES));
  RETURN_IF_ERROR(ready);
  for (size_t rank = 0; rank < ids.size(); ++rank) {
    if (ids[rank].size() != RETORT_NCCL_ID_BYTES) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " has no NCCL"));
    }
  }
  auto nccl = std::make_unique<NcclCommunicator>(mesh, **functions);
  RETURN_IF_ERROR(nccl->Open(device_index, ids[0]));
  return std::unique_ptr<DeviceCommunicator>(std::move(nccl));
}

}  // namespace retort
