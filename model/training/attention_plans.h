// cuDNN's graphs for attention, built when first asked for and kept.
#pragma once

#include <cudnn_frontend.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/training/attention_pieces.h"

namespace retort::internal {

// The graph's tensors. Where samples begin in a tensor: kFirstOffset + the place of its token stride in Strides().
enum AttentionTensor : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLogSum,
  kDOut,
  kDQ,
  kDK,
  kDV,
  kLengths,
  kFirstOffset = 100,
};

// All that a graph depends on.
struct AttentionPlanKey {
  int device = 0;
  bool backward = false, deterministic = false, bf16 = false;
  bool dense = false;
  bool wide = false;                            // offsets are int64
  bool packed_q = false, packed_kv = false;     // see AttentionScratch
  int64_t samples = 0, length = 0, tokens = 0;  // tokens: 0 if dense
  int64_t heads = 0, kv_heads = 0, dim = 0;     // of the piece
  int64_t log_sum_heads = 0;                    // in a row of log_sum: of the whole batch
  int64_t window = 0;
  float scale = 0.0F;
  // Elements a token; those of d_out to dv are 0 in the forward pass.
  int64_t q = 0, k = 0, v = 0, out = 0, d_out = 0, dq = 0, dk = 0, dv = 0;
  auto operator<=>(const AttentionPlanKey&) const = default;

  // The different token strides, log_sum's among them; empty if dense.
  std::vector<int64_t> Strides() const;
  std::string Text() const;
};

struct AttentionPlan {
  std::shared_ptr<cudnn_frontend::graph::Graph> graph;
  int64_t workspace_bytes = 0;
  std::string refusal;  // empty: the graph may be run; else the step that failed and cuDNN's words
  uint64_t last_use = 0;
};

// Not thread-safe.
class AttentionPlans {
 public:
  // The plan for a key, built if need be: `log` then gets a line. Good until the next call.
  const AttentionPlan& For(const AttentionPlanKey& key, cudnnHandle_t handle,
                           const std::function<void(const std::string&)>& log);

 private:
  std::map<AttentionPlanKey, AttentionPlan> plans_;
  uint64_t uses_ = 0;
};

}  // namespace retort::internal
