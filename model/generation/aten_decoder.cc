// The decoder over ATen: any architecture, for GPUs and for what the CPU decoder does not know; the reference that the
// CPU decoder is tested against.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "model/blocks/block.h"
#include "model/blocks/ops.h"
#include "model/generation/decoder.h"
#include "model/generation/rope.h"

namespace retort::internal {
namespace {

// Scores of a pass may exist at once on the CPU.
constexpr int64_t kMaxPassTokensCpu = 512;
// f32 attention may hold scores too.
constexpr int64_t kMaxPassTokensFloat32 = 1024;
constexpr int64_t kMaxPassTokens = 8192;
// Caches grow in steps of this many positions.
constexpr int64_t kCacheStep = 256;

class AtenDecoder final : public Decoder {
 public:
  AtenDecoder(ModelWeights weights, c10::ScalarType compute_dtype, int64_t slots, TensorGroup* group,
              Activations activations)
      : weights_(std::move(weights)),
        device_(weights_.embed_tokens.device()),
        dtype_(device_.is_cpu() || activations == Activations::kFloat32 ? c10::ScalarType::Float : compute_dtype),
        rounded_(compute_dtype),
        slots_(slots),
        tables_(weights_.config),
        group_(group) {
    // The gate of a mixture of experts stays as it is: it decides in f32.
    std::vector<std::pair<at::Tensor, at::Tensor>> gates;
    for (const LayerWeights& layer : weights_.layers) gates.emplace_back(layer.router, layer.router_correction_bias);
    const c10::ScalarType matrices = device_.is_cpu() ? c10::ScalarType::Float : compute_dtype;
    ConvertWeights(weights_, [&](const at::Tensor& weight) {
      return weight.to(compute_dtype).to(weight.dim() > 1 ? matrices : dtype_);
    });
    for (size_t i = 0; i < gates.size(); ++i) {
      weights_.layers[i].router = gates[i].first;
      weights_.layers[i].router_correction_bias = gates[i].second;
    }
    // Fused attention wants values as wide as keys.
    const ModelConfig& config = weights_.config;
    value_width_ = device_.is_cpu() ? config.value_head_dim() : std::max(config.value_head_dim(), config.head_dim);
    keys_.resize(weights_.layers.size());
    values_.resize(weights_.layers.size());
  }

  const ModelConfig& config() const override { return weights_.config; }
  int64_t max_tokens_per_pass() const override {
    if (device_.is_cpu()) return kMaxPassTokensCpu;
    return dtype_ == c10::ScalarType::Float ? kMaxPassTokensFloat32 : kMaxPassTokens;
  }
  absl::Status Reserve(int64_t, int64_t) override { return absl::OkStatus(); }
  absl::StatusOr<at::Tensor> Forward(absl::Span<const Segment> segments) override;
  absl::StatusOr<at::Tensor> Logits(const at::Tensor& hidden) override;

 private:
  class Context;
  // Of the pass that is running.
  struct Pass {
    absl::Span<const Segment> segments;
    at::Tensor slots, positions;  // [tokens]
    at::Tensor tokens, wanted;
    bool decode = true;  // one token a sequence
    int64_t longest = 0;
    RopeRows rope;
  };

  Pass MakePass(absl::Span<const Segment> segments);
  RopeRows Rope(absl::Span<const Segment> segments);
  void GrowCaches(int64_t positions);
  at::Tensor ToDevice(const std::vector<int64_t>& values) const {
    return at::tensor(values, at::TensorOptions().dtype(at::kLong)).to(device_);
  }
  at::Tensor Embed(const at::Tensor& tokens) const;
  at::Tensor Run(absl::Span<const Segment> segments);

  ModelWeights weights_;
  const c10::Device device_;
  const c10::ScalarType dtype_;
  const c10::ScalarType rounded_;  // what weights are rounded to before they are widened to dtype_
  const int64_t slots_;
  RopeTables tables_;
  TensorGroup* const group_;  // null: the model is whole
  int64_t value_width_ = 0;
  int64_t capacity_ = 0;
  std::vector<at::Tensor> keys_, values_;  // a layer: [slots, kv_heads, capacity_, head_dim or value_width_]
};

class AtenDecoder::Context final : public LayerContext {
 public:
  Context(AtenDecoder& decoder, const Pass& pass, size_t layer)
      : config_(decoder.weights_.config),
        weights_(decoder.weights_.layers[layer]),
        pass_(pass),
        keys_(decoder.keys_[layer]),
        values_(decoder.values_[layer]),
        value_width_(decoder.value_width_),
        rounded_(decoder.rounded_),
        group_(decoder.group_) {}

  at::Tensor Project(Projection projection, const at::Tensor& x) override {
    const Linear& linear = weights_[projection];
    const at::Tensor y = Multiply(x, linear.quantized != nullptr ? linear.Weight(rounded_) : linear.weight);
    return linear.bias.defined() ? y + linear.bias : y;
  }

  at::Tensor Combine(const at::Tensor& partial) override {
    return group_ == nullptr ? partial : group_->AllReduce(partial);
  }

  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) override {
    const int64_t v_dim = v.size(2);
    keys_.permute({0, 2, 1, 3}).index_put_({pass_.slots, pass_.positions}, k);
    values_.permute({0, 2, 1, 3})
        .index_put_({pass_.slots, pass_.positions},
                    v_dim == value_width_ ? v : at::constant_pad_nd(v, {0, value_width_ - v_dim}));
    const at::Tensor out = pass_.decode ? OneToken(q, window) : Segments(q, window);
    return out.narrow(2, 0, v_dim);
  }

 private:
  bool grouped() const { return config_.num_attention_heads != config_.num_key_value_heads; }

  at::Tensor Fused(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& mask,
                   bool causal) const {
    return at::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, config_.attention_scale, grouped());
  }

  // Every row another sequence: one batch.
  at::Tensor OneToken(const at::Tensor& q, int64_t window) const {
    const at::Tensor places = at::arange(pass_.longest, pass_.positions.options()).unsqueeze(0);
    const at::Tensor own = pass_.positions.unsqueeze(1);
    at::Tensor mask = places <= own;
    if (window > 0) mask = mask.logical_and(places > own - window);
    const at::Tensor k = keys_.narrow(2, 0, pass_.longest).index_select(0, pass_.slots);
    const at::Tensor v = values_.narrow(2, 0, pass_.longest).index_select(0, pass_.slots);
    return Fused(q.unsqueeze(2), k, v, mask.unsqueeze(1).unsqueeze(1), false).squeeze(2);
  }

  at::Tensor Segments(const at::Tensor& q, int64_t window) const {
    std::vector<at::Tensor> outs;
    int64_t row = 0;
    for (const Segment& segment : pass_.segments) {
      const auto count = static_cast<int64_t>(segment.tokens.size());
      const int64_t seen = segment.start + count;
      const at::Tensor q_rows = q.narrow(0, row, count).transpose(0, 1).unsqueeze(0);
      const at::Tensor k = keys_[segment.slot].narrow(1, 0, seen).unsqueeze(0);
      const at::Tensor v = values_[segment.slot].narrow(1, 0, seen).unsqueeze(0);
      const bool windowed = window > 0 && window < seen;
      std::optional<at::Tensor> mask;
      if (segment.start > 0 || windowed) {
        const at::Tensor places = at::arange(seen, pass_.positions.options()).unsqueeze(0);
        const at::Tensor own = at::arange(segment.start, seen, pass_.positions.options()).unsqueeze(1);
        mask = places <= own;
        if (windowed) mask = mask->logical_and(places > own - window);
      }
      outs.push_back(Fused(q_rows, k, v, mask, !mask.has_value()).squeeze(0).transpose(0, 1));
      row += count;
    }
    return outs.size() == 1 ? outs[0] : at::cat(outs, 0);
  }

  const ModelConfig& config_;
  const LayerWeights& weights_;
  const Pass& pass_;
  at::Tensor keys_, values_;
  const int64_t value_width_;
  const c10::ScalarType rounded_;
  TensorGroup* const group_;
};

// Room for as many positions as sequences really have, not as they might: most end long before max_tokens.
void AtenDecoder::GrowCaches(int64_t positions) {
  if (positions <= capacity_) return;
  const int64_t capacity = (std::max(positions, capacity_ + capacity_ / 2) + kCacheStep - 1) / kCacheStep * kCacheStep;
  const ModelConfig& config = weights_.config;
  const auto grow = [&](at::Tensor& cache, int64_t width) {
    at::Tensor grown = at::zeros({slots_, config.num_key_value_heads, capacity, width},
                                 at::TensorOptions().dtype(dtype_).device(device_));
    if (cache.defined()) grown.narrow(2, 0, capacity_).copy_(cache);
    cache = std::move(grown);
  };
  for (size_t i = 0; i < keys_.size(); ++i) {
    grow(keys_[i], config.head_dim);
    grow(values_[i], value_width_);
  }
  capacity_ = capacity;
}

RopeRows AtenDecoder::Rope(absl::Span<const Segment> segments) {
  std::vector<at::Tensor> cos, sin;
  for (const Segment& segment : segments) {
    const auto count = static_cast<int64_t>(segment.tokens.size());
    const RopeTable& table = tables_.For(segment.sequence_length(), segment.start + count);
    cos.push_back(table.cos.narrow(0, segment.start, count));
    sin.push_back(table.sin.narrow(0, segment.start, count));
  }
  return {at::cat(cos, 0).unsqueeze(1).to(device_), at::cat(sin, 0).unsqueeze(1).to(device_)};
}

AtenDecoder::Pass AtenDecoder::MakePass(absl::Span<const Segment> segments) {
  Pass pass{.segments = segments};
  std::vector<int64_t> tokens, slots, positions, wanted;
  for (const Segment& segment : segments) {
    const auto count = static_cast<int64_t>(segment.tokens.size());
    pass.decode = pass.decode && count == 1;
    pass.longest = std::max(pass.longest, segment.start + count);
    for (int64_t i = 0; i < count; ++i) {
      const bool take =
          segment.wanted == Segment::Wanted::kAll || (segment.wanted == Segment::Wanted::kLast && i + 1 == count);
      if (take) wanted.push_back(static_cast<int64_t>(tokens.size()));
      tokens.push_back(segment.tokens[static_cast<size_t>(i)]);
      slots.push_back(segment.slot);
      positions.push_back(segment.start + i);
    }
  }
  pass.tokens = ToDevice(tokens);
  pass.slots = ToDevice(slots);
  pass.positions = ToDevice(positions);
  pass.wanted = ToDevice(wanted);
  pass.rope = Rope(segments);
  return pass;
}

at::Tensor AtenDecoder::Embed(const at::Tensor& tokens) const {
  if (group_ == nullptr) return weights_.embed_tokens.index_select(0, tokens);
  const TensorShard& shard = *weights_.config.shard;
  const at::Tensor local = tokens - shard.vocab_first;
  const at::Tensor elsewhere = local.lt(0).logical_or(local.ge(shard.vocab_count)).unsqueeze(1);
  const at::Tensor rows = weights_.embed_tokens.index_select(0, local.clamp(0, shard.vocab_count - 1));
  return group_->AllReduce(rows.masked_fill(elsewhere, 0.0));
}

at::Tensor AtenDecoder::Run(absl::Span<const Segment> segments) {
  const c10::InferenceMode inference;
  const ModelConfig& config = weights_.config;
  const Pass pass = MakePass(segments);
  GrowCaches(pass.longest);
  at::Tensor x = Embed(pass.tokens).to(at::kFloat);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    Context context(*this, pass, i);
    x = RunBlock(config, weights_.layers[i], static_cast<int64_t>(i), x, pass.rope, context);
  }
  return RmsNorm(x.index_select(0, pass.wanted), weights_.final_norm, config.rms_norm_eps);
}

absl::StatusOr<at::Tensor> AtenDecoder::Forward(absl::Span<const Segment> segments) {
  try {
    at::Tensor hidden = Run(segments);
    if (group_ != nullptr && !group_->status().ok()) return group_->status();
    return hidden;
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a pass of generation (lower the batch size): ", error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat("generation: ", error.what_without_backtrace()));
  }
}

absl::StatusOr<at::Tensor> AtenDecoder::Logits(const at::Tensor& hidden) {
  try {
    const c10::InferenceMode inference;
    // Not rounded on the way: a bf16 logit of 20 may be wrong by 0.06.
    const bool rounds = hidden.scalar_type() != at::kFloat;
    const at::Tensor logits =
        rounds ? at::mm(hidden, weights_.lm_head.t(), at::kFloat) : Multiply(hidden, weights_.lm_head);
    if (group_ == nullptr) return logits;
    std::vector<int64_t> columns;
    for (int64_t i = 0; i < group_->size(); ++i) {
      columns.push_back(config().vocab_size * (i + 1) / group_->size() - config().vocab_size * i / group_->size());
    }
    at::Tensor all = group_->GatherColumns(logits, columns);
    if (!group_->status().ok()) return group_->status();
    return all;
  } catch (const c10::Error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("logits: ", error.what_without_backtrace()));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> CreateAtenDecoder(ModelWeights weights, c10::ScalarType compute_dtype,
                                                           int64_t slots, TensorGroup* group, Activations activations) {
  RETORT_CHECK((group != nullptr) == weights.config.shard.has_value());
  try {
    return std::make_unique<AtenDecoder>(std::move(weights), compute_dtype, slots, group, activations);
  } catch (const c10::Error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("weights: ", error.what_without_backtrace()));
  }
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                         int64_t slots, TensorGroup* group, Activations activations) {
  if (group == nullptr && weights.embed_tokens.is_cpu() && !HasQuantized(weights) &&
      CpuDecoderSupports(weights.config)) {
    return CreateCpuDecoder(std::move(weights), compute_dtype, slots);
  }
  return CreateAtenDecoder(std::move(weights), compute_dtype, slots, group, activations);
}

}  // namespace retort::internal
