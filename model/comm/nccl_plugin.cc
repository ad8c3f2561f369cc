#include "model/comm/nccl_plugin.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

static_assert(RETORT_NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES);

struct RetortNccl {
  RetortNcclOptions options = {};
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  bool failed = false;
};

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPollInterval = std::chrono::microseconds(50);
// NCCL does not say how far an exchange is, so its time-out grows with it: no link in use is slower than this.
constexpr size_t kSlowestBytesPerMs = 10000;

struct ErrorText {
  char* text;
  size_t size;
  int Set(int code, const char* what, const char* why) const {
    std::snprintf(text, size, "%s: %s", what, why);
    return code;
  }
};

int CheckCuda(cudaError_t result, const char* what, const ErrorText& error) {
  return result == cudaSuccess ? RETORT_NCCL_OK : error.Set(RETORT_NCCL_INTERNAL, what, cudaGetErrorString(result));
}

int CodeOf(ncclResult_t result) {
  return result == ncclRemoteError || result == ncclSystemError ? RETORT_NCCL_PEER : RETORT_NCCL_INTERNAL;
}

// Waits until `pending` is false, as long as the communicator is well and the caller wants it.
template <typename Pending>
int Wait(RetortNccl* nccl, const char* what, size_t bytes, const ErrorText& error, Pending pending) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(nccl->options.timeout_ms) +
                        std::chrono::milliseconds(bytes / kSlowestBytesPerMs);
  while (true) {
    ncclResult_t state = ncclSuccess;
    if (const ncclResult_t asked = ncclCommGetAsyncError(nccl->comm, &state); asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress)
      return error.Set(CodeOf(state), what, ncclGetErrorString(state));
    const int waiting = pending(state);
    if (waiting == 0) return RETORT_NCCL_OK;
    if (waiting < 0) return RETORT_NCCL_INTERNAL;  // the text is set
    if (nccl->options.cancelled != nullptr && nccl->options.cancelled(nccl->options.context) != 0) {
      return error.Set(RETORT_NCCL_PEER, what, "a peer is gone");
    }
    if (Clock::now() > deadline) return error.Set(RETORT_NCCL_TIMEOUT, what, "no progress");
    std::this_thread::sleep_for(kPollInterval);
  }
}

// Until what was handed to NCCL is queued on the stream, and then done there.
int Complete(RetortNccl* nccl, ncclResult_t result, const char* what, size_t bytes, const ErrorText& error) {
  if (result != ncclSuccess && result != ncclInProgress)
    return error.Set(CodeOf(result), what, ncclGetErrorString(result));
  if (const int code =
          Wait(nccl, what, bytes, error, [](ncclResult_t state) { return state == ncclInProgress ? 1 : 0; });
      code != RETORT_NCCL_OK) {
    return code;
  }
  return Wait(nccl, what, bytes, error, [&](ncclResult_t) {
    const cudaError_t done = cudaStreamQuery(nccl->stream);
    if (done == cudaSuccess) return 0;
    if (done == cudaErrorNotReady) return 1;
    error.Set(RETORT_NCCL_INTERNAL, what, cudaGetErrorString(done));
    return -1;
  });
}

// The gradients come from other streams of the device.
int Begin(RetortNccl* nccl, const ErrorText& error) {
  if (nccl->failed) return error.Set(RETORT_NCCL_INTERNAL, "NCCL", "used after a failure");
  if (const int code = CheckCuda(cudaSetDevice(nccl->options.device_index), "select the GPU", error)) return code;
  return CheckCuda(cudaDeviceSynchronize(), "wait for the GPU", error);
}

int Note(RetortNccl* nccl, int code) {
  nccl->failed = nccl->failed || code != RETORT_NCCL_OK;
  return code;
}

int NewId(char* id, char* text, size_t size) {
  ncclUniqueId unique;
  const ncclResult_t result = ncclGetUniqueId(&unique);
  if (result != ncclSuccess) {
    return ErrorText{text, size}.Set(RETORT_NCCL_INTERNAL, "ncclGetUniqueId", ncclGetErrorString(result));
  }
  std::memcpy(id, unique.internal, NCCL_UNIQUE_ID_BYTES);
  return RETORT_NCCL_OK;
}

void Close(RetortNccl* nccl) {
  if (nccl == nullptr) return;
  // Abort also where nothing failed: destroying waits for peers, who may be gone by now.
  if (nccl->comm != nullptr) ncclCommAbort(nccl->comm);
  if (nccl->stream != nullptr) cudaStreamDestroy(nccl->stream);
  delete nccl;
}

int Start(RetortNccl* nccl, const ErrorText& error) {
  if (const int code = CheckCuda(cudaSetDevice(nccl->options.device_index), "select the GPU", error)) return code;
  if (const int code =
          CheckCuda(cudaStreamCreateWithFlags(&nccl->stream, cudaStreamNonBlocking), "make a stream", error)) {
    return code;
  }
  ncclUniqueId unique;
  std::memcpy(unique.internal, nccl->options.id, NCCL_UNIQUE_ID_BYTES);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t result =
      ncclCommInitRankConfig(&nccl->comm, nccl->options.size, unique, nccl->options.rank, &config);
  if (result != ncclSuccess && result != ncclInProgress) {
    return error.Set(CodeOf(result), "form the NCCL communicator", ncclGetErrorString(result));
  }
  return Wait(nccl, "form the NCCL communicator", 0, error,
              [](ncclResult_t state) { return state == ncclInProgress ? 1 : 0; });
}

int Open(const RetortNcclOptions* options, RetortNccl** opened, char* text, size_t size) {
  auto* nccl = new RetortNccl;
  nccl->options = *options;
  const int code = Start(nccl, {text, size});
  if (code == RETORT_NCCL_OK) {
    *opened = nccl;
  } else {
    Close(nccl);
  }
  return code;
}

int Exchange(RetortNccl* nccl, const void* const* send, const size_t* send_bytes, void* const* receive,
             const size_t* receive_bytes, char* text, size_t size) {
  const ErrorText error{text, size};
  if (const int code = Begin(nccl, error)) return Note(nccl, code);
  const int self = nccl->options.rank;
  if (send_bytes[self] > 0 && send[self] != receive[self]) {
    const cudaError_t copied =
        cudaMemcpyAsync(receive[self], send[self], send_bytes[self], cudaMemcpyDeviceToDevice, nccl->stream);
    if (const int code = CheckCuda(copied, "copy a gradient", error)) return Note(nccl, code);
  }
  size_t bytes = 0;
  ncclResult_t result = ncclGroupStart();
  for (int peer = 0; peer < nccl->options.size && result == ncclSuccess; ++peer) {
    if (peer == self) continue;
    bytes += send_bytes[peer] + receive_bytes[peer];
    if (send_bytes[peer] > 0) result = ncclSend(send[peer], send_bytes[peer], ncclInt8, peer, nccl->comm, nccl->stream);
    if (result == ncclInProgress) result = ncclSuccess;
    if (receive_bytes[peer] > 0 && result == ncclSuccess) {
      result = ncclRecv(receive[peer], receive_bytes[peer], ncclInt8, peer, nccl->comm, nccl->stream);
    }
    if (result == ncclInProgress) result = ncclSuccess;
  }
  const ncclResult_t ended = ncclGroupEnd();
  return Note(nccl, Complete(nccl, result == ncclSuccess ? ended : result, "exchange gradients", bytes, error));
}

int AllReduceSum(RetortNccl* nccl, float* values, size_t count, char* text, size_t size) {
  const ErrorText error{text, size};
  if (const int code = Begin(nccl, error)) return Note(nccl, code);
  const ncclResult_t result = ncclAllReduce(values, values, count, ncclFloat32, ncclSum, nccl->comm, nccl->stream);
  return Note(nccl, Complete(nccl, result, "sum gradients", 2 * count * sizeof(float), error));
}

}  // namespace

const RetortNcclFunctions* RetortNcclPlugin(void) {
  static constexpr RetortNcclFunctions kFunctions = {NewId, Open, Exchange, AllReduceSum, Close};
  return &kFunctions;
}
