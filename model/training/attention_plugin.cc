// libretort_attention.so: queues a batch's pieces on cuDNN.
#include "model/training/attention_plugin.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/training/attention_index.h"
#include "model/training/attention_pieces.h"
#include "model/training/attention_plans.h"

// The front end asks it for cuDNN's functions.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace retort::internal {
namespace {

// Of the backward pass's scratch in bytes. Above the first a batch is cut into pieces; a piece may not take more than
// the second.
constexpr int64_t kPreferredScratch = int64_t{3} << 29;
constexpr int64_t kLargestScratch = int64_t{4} << 30;

constexpr int64_t kAlignment = 256;
constexpr size_t kOldestCudnn = 90600;   // the first with key heads shared by query heads in ragged batches
constexpr size_t kOrderedCudnn = 92500;  // the first that adds up dQ in a fixed order on Hopper
// How the front end is asked for that order: it must not store the scores' gradient.
constexpr char kScoresLimit[] = "CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT";

thread_local std::string last_message;

int Unsupported(std::string message) {
  last_message = std::move(message);
  return RETORT_ATTENTION_UNSUPPORTED;
}
int Failed(std::string message) {
  last_message = std::move(message);
  return RETORT_ATTENTION_FAILED;
}

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// cuDNN as the process has it, and what was built with it. Never destroyed: the driver may be gone first.
class Cudnn {
 public:
  static Cudnn& Instance() {
    static Cudnn& cudnn = *new Cudnn;
    return cudnn;
  }

  std::mutex& mutex() { return mutex_; }
  AttentionPlans& plans() { return plans_; }

  // Whether a deterministic backward pass stores the scores' gradient.
  bool StoresScores(int device) const {
    int major = 0;
    const bool known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    return !(orders_ && known && major == 9);
  }

  // Null, and why: it cannot be had on this device, which is the current one.
  cudnnHandle_t HandleFor(int device, std::string& why) {
    if (!opened_) Open();
    if (!error_.empty()) {
      why = error_;
      return nullptr;
    }
    const auto found = handles_.find(device);
    if (found != handles_.end()) return found->second;
    cudnnHandle_t handle = nullptr;
    const cudnnStatus_t status = cudnn_frontend::detail::create_handle(&handle);
    if (status != CUDNN_STATUS_SUCCESS) {
      why = std::string("cudnnCreate: ") + cudnn_frontend::detail::get_error_string(status);
      return nullptr;
    }
    handles_[device] = handle;
    return handle;
  }

 private:
  void Open() {
    opened_ = true;
    constexpr char kName[] = "libcudnn.so.9";
    // Its own choice would be an older CUDA's runtime where both are installed.
    setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", "libcudart.so.13", /*overwrite=*/0);
    void*& library = cudnn_frontend::cudnn_dlhandle;
    library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      error_ = std::string("opening cuDNN: ") + dlerror();
      return;
    }
    if (dlsym(library, "cudnnGetVersion") == nullptr) {
      error_ = std::string(kName) + " lacks cudnnGetVersion";
      return;
    }
    const size_t version = cudnn_frontend::detail::get_backend_version();
    if (version >= kOrderedCudnn) setenv(kScoresLimit, "0", /*overwrite=*/0);
    const char* const limit = getenv(kScoresLimit);
    orders_ = version >= kOrderedCudnn && limit != nullptr && std::string(limit) == "0";
    if (version < kOldestCudnn) {
      error_ = "cuDNN " + std::to_string(version) + " is older than " + std::to_string(kOldestCudnn);
    }
  }

  std::mutex mutex_;
  bool opened_ = false;
  std::string error_;
  bool orders_ = false;
  std::map<int, cudnnHandle_t> handles_;
  AttentionPlans plans_;
};

using Pointers = std::unordered_map<int64_t, void*>;

struct View {
  AttentionTensor tensor;
  RetortAttentionView view;
  bool of_keys = false;
};

// A pass over a batch, forward or backward.
class Pass {
 public:
  Pass(const RetortAttentionCaller& caller, const RetortAttentionBatch& batch, std::vector<View> views, float* log_sum,
       bool backward)
      : caller_(caller),
        batch_(batch),
        views_(std::move(views)),
        log_sum_(log_sum),
        backward_(backward),
        dense_(IsDense(batch.offsets, batch.samples)) {}

  int Run() {
    if (batch_.samples == 0 || batch_.offsets[batch_.samples] == batch_.offsets[0]) return RETORT_ATTENTION_DONE;
    if (const std::string why = Misfit(); !why.empty()) return Unsupported(why);
    Cudnn& cudnn = Cudnn::Instance();
    const std::lock_guard<std::mutex> lock(cudnn.mutex());
    std::string why;
    const cudnnHandle_t handle = cudnn.HandleFor(caller_.device, why);
    if (handle == nullptr) return Unsupported(why);
    const AttentionProblem problem = Problem(cudnn);
    const std::vector<AttentionPiece> pieces =
        backward_ ? CutBackward(problem, kPreferredScratch, kLargestScratch)
                  : std::vector<AttentionPiece>{{0, batch_.samples, 0, batch_.kv_heads}};
    if (pieces.empty()) return Unsupported("one head of one sample takes too much scratch memory");
    // All plans before anything is queued: a refusal must leave nothing half done.
    int64_t scratch_bytes = 0;
    int64_t index_bytes = 0;
    for (const AttentionPiece& piece : pieces) {
      const AttentionPlanKey key = KeyOf(problem, piece);
      const AttentionPlan& plan = PlanOf(cudnn, key, handle);
      if (!plan.refusal.empty()) return Unsupported(plan.refusal + "; " + key.Text());
      scratch_bytes = std::max(scratch_bytes, plan.workspace_bytes);
      index_bytes = std::max(index_bytes, IndexBytes(key));
    }
    if (scratch_bytes > kLargestScratch) {
      return Unsupported("cuDNN asks for " + std::to_string(scratch_bytes) + " bytes of scratch memory");
    }
    char* index = nullptr;
    if (index_bytes + scratch_bytes > 0) {
      index = static_cast<char*>(
          caller_.allocate(caller_.context, static_cast<size_t>(index_bytes + scratch_bytes + kAlignment)));
      if (index == nullptr) return Failed("no memory for " + std::to_string(index_bytes + scratch_bytes) + " bytes");
    }
    const auto stream = static_cast<cudaStream_t>(caller_.stream);
    const cudnnStatus_t status = cudnn_frontend::detail::set_stream(handle, stream);
    if (status != CUDNN_STATUS_SUCCESS) {
      return Failed(std::string("cudnnSetStream: ") + cudnn_frontend::detail::get_error_string(status));
    }
    for (const AttentionPiece& piece : pieces) {
      const AttentionPlanKey key = KeyOf(problem, piece);
      Pointers pointers;
      if (!dense_) {
        const cudaError_t error = Index(key, piece, index, stream, pointers);
        if (error != cudaSuccess) return Failed(std::string("index of samples: ") + cudaGetErrorString(error));
      }
      Point(piece, pointers);
      const AttentionPlan& plan = PlanOf(cudnn, key, handle);
      if (!plan.refusal.empty()) return Failed(plan.refusal + "; " + key.Text());
      cudnn_frontend::error_t error = plan.graph->execute(handle, pointers, index + index_bytes);
      if (error.is_bad()) return Failed("running the plan: " + error.get_message() + "; " + key.Text());
    }
    return RETORT_ATTENTION_DONE;
  }

 private:
  // What cuDNN would refuse or, worse, not look at.
  std::string Misfit() const {
    constexpr int64_t kVector = 8;  // elements in the 16 bytes that its kernels load at once
    if (batch_.type != RETORT_ATTENTION_BF16 && batch_.type != RETORT_ATTENTION_F16) return "neither bf16 nor f16";
    if (batch_.kv_heads <= 0 || batch_.heads % batch_.kv_heads != 0) return "heads are no multiple of key heads";
    if (batch_.dim <= 0 || batch_.dim % kVector != 0) return "the head's width is no multiple of 8";
    for (const View& view : views_) {
      if (view.view.token_stride % kVector != 0 || reinterpret_cast<uintptr_t>(view.view.data) % 16 != 0) {
        return "rows do not begin at multiples of 16 bytes";
      }
    }
    return "";
  }

  int64_t StrideOf(AttentionTensor tensor) const {
    for (const View& view : views_) {
      if (view.tensor == tensor) return view.view.token_stride;
    }
    return 0;
  }

  AttentionProblem Problem(const Cudnn& cudnn) const {
    return {.offsets = batch_.offsets,
            .samples = batch_.samples,
            .heads = batch_.heads,
            .kv_heads = batch_.kv_heads,
            .dim = batch_.dim,
            .stores_scores = batch_.deterministic != 0 && cudnn.StoresScores(caller_.device),
            .q_stride = StrideOf(kDQ),
            .kv_stride = std::max(StrideOf(kDK), StrideOf(kDV))};
  }

  AttentionPlanKey KeyOf(const AttentionProblem& problem, const AttentionPiece& piece) const {
    const AttentionGraphShape shape = ShapeOf(batch_.offsets, piece.first, piece.count, dense_);
    AttentionPlanKey key{.device = caller_.device, .backward = backward_};
    key.bf16 = batch_.type == RETORT_ATTENTION_BF16;
    key.dense = dense_;
    key.samples = shape.samples;
    key.length = shape.length;
    key.kv_heads = piece.kv_count;
    key.heads = piece.kv_count * (batch_.heads / batch_.kv_heads);
    key.dim = batch_.dim;
    key.log_sum_heads = batch_.heads;
    key.window = batch_.window < shape.length ? batch_.window : 0;
    key.scale = static_cast<float>(batch_.scale);
    key.q = StrideOf(kQ);
    key.k = StrideOf(kK);
    key.v = StrideOf(kV);
    key.out = StrideOf(kOut);
    if (backward_) {
      const AttentionScratch scratch = ScratchOf(problem, shape, piece.kv_count);
      key.deterministic = batch_.deterministic != 0;
      key.packed_q = scratch.packed_q;
      key.packed_kv = scratch.packed_kv;
      if (key.packed_q || key.packed_kv) key.tokens = shape.tokens;
      key.d_out = StrideOf(kDOut);
      key.dq = StrideOf(kDQ);
      key.dk = StrideOf(kDK);
      key.dv = StrideOf(kDV);
    }
    int64_t widest = 0;
    for (const int64_t stride : key.Strides()) widest = std::max(widest, stride);
    // Where cuDNN's scratch for dK and dV is packed, its offsets are those of dK and dV times the query heads of a key
    // head.
    key.wide = shape.tokens * widest * (batch_.heads / batch_.kv_heads) > std::numeric_limits<int32_t>::max();
    return key;
  }

  const AttentionPlan& PlanOf(Cudnn& cudnn, const AttentionPlanKey& key, cudnnHandle_t handle) const {
    return cudnn.plans().For(key, handle,
                             [this](const std::string& line) { caller_.log(caller_.context, line.c_str()); });
  }

  // Arrays begin at multiples of 16 bytes.
  static int64_t Pitch(const AttentionPlanKey& key) { return RoundUp(key.samples + 1, 4); }
  static int64_t IndexBytes(const AttentionPlanKey& key) {
    if (key.dense) return 0;
    const int64_t offsets = static_cast<int64_t>(key.Strides().size()) * Pitch(key) * (key.wide ? 8 : 4);
    return RoundUp(Pitch(key) * 4 + offsets, kAlignment);
  }

  cudaError_t Index(const AttentionPlanKey& key, const AttentionPiece& piece, char* memory, cudaStream_t stream,
                    Pointers& pointers) const {
    const std::vector<int64_t> strides = key.Strides();
    AttentionIndex index;
    index.cumulative = batch_.cumulative + piece.first;
    index.count = static_cast<int32_t>(piece.count);
    index.padded = static_cast<int32_t>(key.samples);
    index.strides = static_cast<int32_t>(strides.size());
    std::copy(strides.begin(), strides.end(), index.stride);
    index.wide = key.wide;
    index.pitch = Pitch(key);
    index.lengths = reinterpret_cast<int32_t*>(memory);
    char* const offsets = memory + index.pitch * 4;
    index.offsets = offsets;
    pointers[kLengths] = memory;
    for (int64_t i = 0; i < index.strides; ++i) {
      pointers[kFirstOffset + i] = offsets + i * index.pitch * (key.wide ? 8 : 4);
    }
    return FillIndex(index, stream);
  }

  // Where the piece's part of each tensor begins.
  void Point(const AttentionPiece& piece, Pointers& pointers) const {
    constexpr int64_t kElementBytes = 2;
    const int64_t token = batch_.offsets[piece.first] - batch_.offsets[0];
    const int64_t group = batch_.heads / batch_.kv_heads;
    for (const View& view : views_) {
      const int64_t head = piece.kv_first * (view.of_keys ? 1 : group);
      pointers[view.tensor] =
          static_cast<char*>(view.view.data) + (token * view.view.token_stride + head * batch_.dim) * kElementBytes;
    }
    const int64_t length = batch_.offsets[1] - batch_.offsets[0];
    const int64_t head = piece.kv_first * group;
    pointers[kLogSum] = log_sum_ + token * batch_.heads + (dense_ ? head * length : head);
  }

  const RetortAttentionCaller& caller_;
  const RetortAttentionBatch& batch_;
  const std::vector<View> views_;
  float* const log_sum_;
  const bool backward_;
  const bool dense_;
};

int Run(Pass pass) {
  try {
    return pass.Run();
  } catch (const std::exception& error) {
    return Failed(error.what());
  }
}

int Supports(int device) {
  try {
    Cudnn& cudnn = Cudnn::Instance();
    const std::lock_guard<std::mutex> lock(cudnn.mutex());
    std::string why;
    if (cudnn.HandleFor(device, why) == nullptr) return Unsupported(why);
    int major = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error != cudaSuccess) return Unsupported(std::string("compute capability: ") + cudaGetErrorString(error));
    if (major < 8) return Unsupported("compute capability " + std::to_string(major) + " is below 8");
    return RETORT_ATTENTION_DONE;
  } catch (const std::exception& error) {
    return Unsupported(error.what());
  }
}

int BySample(const RetortAttentionBatch* batch) { return IsDense(batch->offsets, batch->samples) ? 1 : 0; }

int Forward(const RetortAttentionCaller* caller, const RetortAttentionBatch* batch,
            const RetortAttentionForward* views) {
  return Run(Pass(*caller, *batch, {{kQ, views->q}, {kK, views->k, true}, {kV, views->v, true}, {kOut, views->out}},
                  views->log_sum,
                  /*backward=*/false));
}

int Backward(const RetortAttentionCaller* caller, const RetortAttentionBatch* batch,
             const RetortAttentionBackward* views) {
  return Run(Pass(*caller, *batch,
                  {{kDOut, views->d_out},
                   {kQ, views->q},
                   {kK, views->k, true},
                   {kV, views->v, true},
                   {kOut, views->out},
                   {kDQ, views->dq},
                   {kDK, views->dk, true},
                   {kDV, views->dv, true}},
                  const_cast<float*>(views->log_sum), /*backward=*/true));
}

const char* Message() { return last_message.c_str(); }

}  // namespace
}  // namespace retort::internal

extern "C" __attribute__((visibility("default"))) const RetortAttentionFunctions* RetortAttentionPlugin(void) {
  using namespace retort::internal;  // NOLINT(google-build-using-namespace)
  static const RetortAttentionFunctions functions = {Supports, BySample, Forward, Backward, Message};
  return &functions;
}
