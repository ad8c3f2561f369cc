#include "model/training/cudnn_attention.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/plugin.h"
#include "model/kernels/kernel_plugin.h"
#include "model/training/attention_plugin.h"

namespace retort::internal {
namespace {

struct Plugin {
  const RetortAttentionFunctions* functions = nullptr;
  std::string absence;  // why there is none
};

Plugin LoadPlugin() {
  Plugin plugin;
  const auto entry = reinterpret_cast<const RetortAttentionFunctions* (*)()>(
      OpenPlugin("libretort_attention.so", "RetortAttentionPlugin", plugin.absence));
  if (entry != nullptr) plugin.functions = entry();
  return plugin;
}

// One line for each reason, so that a batch refused at every layer of every step fills no log.
void LogOnce(const std::string& why) {
  constexpr size_t kMostReasons = 64;
  static std::mutex& mutex = *new std::mutex;
  static absl::flat_hash_set<std::string>& told = *new absl::flat_hash_set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (told.size() < kMostReasons && told.insert(why).second) spdlog::info("cudnn_attention_refused why=\"{}\"", why);
}

// Null, and why: there is none for the device.
const RetortAttentionFunctions* FunctionsFor(c10::Device device, std::string& why) {
  static const Plugin& plugin = *new Plugin(LoadPlugin());
  if (plugin.functions == nullptr) {
    why = plugin.absence;
  } else if (plugin.functions->supports(device.index()) != RETORT_ATTENTION_DONE) {
    why = plugin.functions->message();
  } else {
    return plugin.functions;
  }
  LogOnce(why);
  return nullptr;
}

// Hands torch's memory to the plug-in. What it holds may go when the work is queued: torch reuses memory in the order
// of the stream.
class Caller {
 public:
  explicit Caller(c10::Device device) : device_(device) {
    caller_ = {.device = device.index(), .stream = StreamOf(device), .context = this, .allocate = Allocate, .log = Log};
  }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;
  const RetortAttentionCaller* get() const { return &caller_; }

 private:
  static void* Allocate(void* context, size_t bytes) {
    auto& self = *static_cast<Caller*>(context);
    try {
      self.held_.push_back(at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions(self.device_).dtype(at::kByte)));
      return self.held_.back().mutable_data_ptr();
    } catch (const std::exception& error) {
      spdlog::warn("cudnn_attention_memory bytes={} error=\"{}\"", bytes, error.what());
      return nullptr;
    }
  }
  static void Log(void* /*context*/, const char* line) { spdlog::debug("{}", line); }

  const c10::Device device_;
  RetortAttentionCaller caller_ = {};
  std::vector<at::Tensor> held_;
};

// A tensor as the plug-in takes it; nothing where its strides do not allow it.
std::optional<RetortAttentionView> ViewOf(const at::Tensor& tensor) {
  const bool rows = tensor.stride(2) == 1 && (tensor.size(1) == 1 || tensor.stride(1) == tensor.size(2));
  if (!rows) return std::nullopt;
  return RetortAttentionView{const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0)};
}

RetortAttentionBatch BatchOf(const at::Tensor& q, const at::Tensor& k, const PackedSamples& samples,
                             const AttentionOptions& options) {
  return {.type = q.scalar_type() == at::kBFloat16 ? RETORT_ATTENTION_BF16 : RETORT_ATTENTION_F16,
          .heads = q.size(1),
          .kv_heads = k.size(1),
          .dim = q.size(2),
          .samples = samples.count(),
          .offsets = samples.offsets.data(),
          .cumulative = samples.cumulative.const_data_ptr<int32_t>(),
          .scale = options.scale,
          .window = options.window,
          .deterministic = options.deterministic ? 1 : 0};
}

bool Took(const RetortAttentionFunctions& functions, int result, const char* what, std::string& why) {
  if (result == RETORT_ATTENTION_DONE) return true;
  why = functions.message();
  TORCH_CHECK(result == RETORT_ATTENTION_UNSUPPORTED, "cuDNN, ", what, ": ", why);
  LogOnce(absl::StrCat(what, ": ", why));
  return false;
}

// Every view of a pass, or false.
bool Views(std::initializer_list<std::pair<const at::Tensor*, RetortAttentionView*>> tensors, std::string& why) {
  for (const auto& [tensor, view] : tensors) {
    const std::optional<RetortAttentionView> found = ViewOf(*tensor);
    if (!found.has_value()) {
      why = absl::StrCat("a tensor's heads do not lie one after the other: strides ",
                         absl::StrJoin(tensor->strides(), ", "));
      LogOnce(why);
      return false;
    }
    *view = *found;
  }
  return true;
}

// Rows' sums as the plug-in keeps them for a batch: see RetortAttentionForward.
at::Tensor LogSumFor(const RetortAttentionFunctions& functions, const RetortAttentionBatch& batch,
                     const AttentionTape& tape) {
  if (functions.by_sample(&batch) == 0) return LogSumByToken(tape).contiguous();
  if (tape.log_sum.dim() == 3) return tape.log_sum;
  return tape.log_sum.unflatten(0, {batch.samples, -1}).transpose(1, 2).contiguous();
}

}  // namespace

bool CudnnAttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                        const AttentionOptions& options, at::Tensor& out, AttentionTape& tape, std::string& why) {
  const RetortAttentionFunctions* functions = FunctionsFor(q.device(), why);
  RetortAttentionForward views = {};
  if (functions == nullptr || !Views({{&q, &views.q}, {&k, &views.k}, {&v, &views.v}, {&out, &views.out}}, why)) {
    return false;
  }
  const RetortAttentionBatch batch = BatchOf(q, k, samples, options);
  const auto floats = q.options().dtype(at::kFloat);
  at::Tensor log_sum = functions->by_sample(&batch) != 0
                           ? at::empty({batch.samples, batch.heads, samples.longest}, floats)
                           : at::empty({q.size(0), batch.heads}, floats);
  views.log_sum = log_sum.mutable_data_ptr<float>();
  Caller caller(q.device());
  if (!Took(*functions, functions->forward(caller.get(), &batch, &views), "attention", why)) return false;
  tape.log_sum = std::move(log_sum);
  return true;
}

bool CudnnAttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                         const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv,
                         std::string& why) {
  const RetortAttentionFunctions* functions = FunctionsFor(q.device(), why);
  RetortAttentionBackward views = {};
  if (functions == nullptr || !Views({{&d_out, &views.d_out},
                                      {&q, &views.q},
                                      {&k, &views.k},
                                      {&v, &views.v},
                                      {&out, &views.out},
                                      {&dq, &views.dq},
                                      {&dk, &views.dk},
                                      {&dv, &views.dv}},
                                     why)) {
    return false;
  }
  const RetortAttentionBatch batch = BatchOf(q, k, samples, options);
  const at::Tensor log_sum = LogSumFor(*functions, batch, tape);
  views.log_sum = log_sum.const_data_ptr<float>();
  Caller caller(q.device());
  return Took(*functions, functions->backward(caller.get(), &batch, &views), "its gradient", why);
}

}  // namespace retort::internal
