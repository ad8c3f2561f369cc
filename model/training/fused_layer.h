// One transformer layer of FusedTrainingModel: forward with a tape, and backward from it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/training/flat_adapter.h"
#include "model/training/fused_linear.h"
#include "model/training/fused_ops.h"
#include "model/training/training_attention.h"
#include "model/weights.h"

namespace retort::internal {

// What is the same for every layer of one pass.
struct FusedPass {
  const FusedOps* ops = nullptr;
  const PackedSamples* samples = nullptr;
  at::Tensor cos, sin;  // [tokens, rope.dim / 2], f32
  uint64_t dropout_key = 0;
  double dropout = 0.0;
  bool deterministic = true;
};

// What a layer's forward pass leaves for its backward pass. Norms and SwiGLU are computed again.
struct LayerTape {
  at::Tensor input;   // [tokens, hidden]
  Wide qkv;           // rotated, and normed where the model does
  at::Tensor before;  // its queries and keys before the norm of heads; undefined without one
  Wide attended;
  AttentionTape attention;
  at::Tensor middle;  // after attention
  Wide gate_up;
  at::Tensor qkv_low, o_low, gate_up_low, down_low;  // x A^T of the linear modules
};

// The modules that share an input, and so are one product.
struct LinearGroups {
  std::vector<Projection> qkv, o, gate_up, down;
};
LinearGroups LinearGroupsOf(const ModelConfig& config);

class FusedLayer {
 public:
  // `weights` must outlive the construction only.
  FusedLayer(const ModelConfig& config, int64_t index, const LayerWeights& weights, const FlatAdapter& adapter);

  void AppendBlocks(std::vector<FlatBlock>& blocks) const;
  // Elements that a token's part of the tape holds, its input left out; and those that Backward needs beside it.
  int64_t TapeWidth() const;
  int64_t WorkWidth() const;

  // The residual stream after the layer.
  at::Tensor Forward(const FusedPass& pass, const at::Tensor& input, LayerTape& tape) const;

  // `stream`: MakeGradientStream's, the gradient of the layer's output; becomes that of its input where `want_input` is
  // set. Writes the adapters' gradients into `gradient` and empties the tape.
  void Backward(const FusedPass& pass, LayerTape& tape, bool want_input, const FlatAdapter& adapter, Wide& stream,
                at::Tensor& gradient) const;

  // A buffer for Backward, wide enough for every layer of `layers`.
  static Wide MakeGradientStream(const std::vector<FusedLayer>& layers, int64_t tokens);

 private:
  static FusedLinear::Masks MasksOf(const FusedPass& pass, const FusedLinear& linear, int64_t tokens);
  at::Tensor Heads(const at::Tensor& rows, int64_t first, int64_t heads) const;  // columns as [tokens, heads, dim]
  AttentionOptions AttentionOf(const FusedPass& pass) const;
  void NormHeads(const FusedPass& pass, Wide& qkv, LayerTape& tape) const;
  void NormHeadsBackward(const FusedPass& pass, const LayerTape& tape, Wide& d_qkv) const;

  const ModelConfig& config_;
  int64_t index_;
  at::Tensor input_norm_, post_attention_norm_, q_norm_, k_norm_;
  FusedLinear qkv_, o_, gate_up_, down_;
};

}  // namespace retort::internal
