// One transformer layer of the CPU training path: what it keeps, and its passes over blocks of rows.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/training/cpu_attention.h"
#include "model/training/cpu_buffers.h"
#include "model/training/cpu_linear.h"
#include "model/weights.h"

namespace retort::internal {

// Rows of a block: a multiple of 6 and 4 more, small enough for the second-level cache.
inline constexpr int64_t kBlockRows = 64;

// What a layer's backward pass needs of its forward pass, over the whole micro-batch. Norms and SwiGLU are computed
// again.
struct CpuSavedLayer {
  MatrixView input;       // [tokens, hidden]: the residual stream
  MatrixView qkv;         // rotated
  MatrixView attention;   // [tokens, heads * head_dim]
  MatrixView statistics;  // [tokens, 2 * heads]: softmax's
  MatrixView middle;      // [tokens, hidden]: after attention
  MatrixView gate_up;
  MatrixView low_qkv, low_o, low_gate_up, low_down;  // A x
};

// Gradients on their way through one layer, over the whole micro-batch; layers share them.
struct CpuGradients {
  MatrixView out;     // [tokens, hidden]: d(loss)/d(output)
  MatrixView middle;  // [tokens, hidden]
  MatrixView input;   // [tokens, hidden]
  MatrixView gate_up, attention, qkv;
  MatrixView product;                                // [tokens, intermediate]: SwiGLU's output, again
  MatrixView normed, normed_middle;                  // [tokens, hidden]: the norms' outputs, again
  MatrixView low_qkv, low_o, low_gate_up, low_down;  // d(loss)/d(A x)
};

// One thread's work space.
struct CpuScratch {
  MatrixView normed, wide, dropped;  // [kBlockRows, the widest that is needed]
  MatrixView logits;                 // [kBlockRows, CpuHead::kSlice]
  MatrixView gradient;               // CpuLinear::Gradient's
  CpuAttention::Scratch attention;
};

struct Rope {
  const float* cos = nullptr;  // [positions, head_dim / 2]
  const float* sin = nullptr;
  const int64_t* positions = nullptr;  // [tokens]
};

class CpuLayer {
 public:
  static absl::StatusOr<CpuLayer> Create(const ModelConfig& config, const LayerWeights& weights, int64_t index,
                                         const FlatAdapter& adapter, ThreadPool& pool);

  void PackAdapter(const float* flat);

  // Takes the shape of `tokens` rows from the arena.
  CpuSavedLayer TakeSaved(Arena& arena, int64_t tokens) const;
  CpuGradients TakeGradients(Arena& arena, int64_t tokens) const;
  int64_t widest() const;

  const CpuAttention& attention() const { return attention_; }

  // Rows [first, first + rows): norm, q, k, v, rotation.
  void ForwardToAttention(int64_t first, int64_t rows, const Rope& rope, const CpuDropout& dropout,
                          const CpuScratch& scratch, const CpuSavedLayer& saved) const;
  // From attention's output to `out`, the next layer's input.
  void ForwardFromAttention(int64_t first, int64_t rows, const CpuDropout& dropout, const CpuScratch& scratch,
                            const CpuSavedLayer& saved, MatrixView out) const;
  // From gradients.out to gradients.attention and gradients.middle.
  void BackwardToAttention(int64_t first, int64_t rows, const CpuDropout& dropout, const CpuScratch& scratch,
                           const CpuSavedLayer& saved, const CpuGradients& gradients) const;
  // From gradients.qkv to gradients.input, which is left alone where it has no data.
  void BackwardFromAttention(int64_t first, int64_t rows, const Rope& rope, const CpuDropout& dropout,
                             const CpuScratch& scratch, const CpuSavedLayer& saved,
                             const CpuGradients& gradients) const;

  // Once the backward passes are done: the adapter's gradients in independent tasks.
  int64_t gradient_tasks() const;
  void Gradient(int64_t task, int64_t tokens, const CpuDropout& dropout, const CpuScratch& scratch,
                const CpuSavedLayer& saved, const CpuGradients& gradients, float* flat_gradient) const;

 private:
  explicit CpuLayer(const ModelConfig& config);
  void RotateRow(float* row, int64_t token, const Rope& rope, float sign) const;

  const TrainKernels& kernels_;
  const int64_t hidden_, heads_, kv_heads_, head_dim_, intermediate_;
  const double epsilon_;
  CpuAttention attention_;
  std::vector<float> input_norm_, post_attention_norm_;  // padded
  CpuLinear qkv_, o_, gate_up_, down_;
};

}  // namespace retort::internal
