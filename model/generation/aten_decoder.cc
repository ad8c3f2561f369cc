// The decoder over ATen: for GPUs, and the reference that the CPU decoder is tested against.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "model/generation/decoder.h"
#include "model/generation/rope.h"

namespace retort::internal {
namespace {

constexpr int64_t kMaxPassTokens = 8192;
// Caches grow in steps of this many positions.
constexpr int64_t kCacheStep = 256;

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor y = at::matmul(x, weight.t());
  return bias.defined() ? y + bias : y;
}

// x: [rows, heads, head_dim]; cos, sin: [rows, 1, head_dim / 2], f32.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor low = x.narrow(-1, 0, half).to(at::kFloat);
  const at::Tensor high = x.narrow(-1, half, half).to(at::kFloat);
  return at::cat({low * cos - high * sin, high * cos + low * sin}, -1).to(x.scalar_type());
}

class AtenDecoder final : public Decoder {
 public:
  AtenDecoder(ModelWeights weights, c10::ScalarType compute_dtype, int64_t slots)
      : weights_(std::move(weights)), dtype_(compute_dtype), slots_(slots) {
    const auto convert = [&](at::Tensor& weight) {
      if (weight.defined()) weight = weight.to(dtype_);
    };
    const bool tied = weights_.lm_head.is_alias_of(weights_.embed_tokens);
    convert(weights_.embed_tokens);
    if (tied) {
      weights_.lm_head = weights_.embed_tokens;
    } else {
      convert(weights_.lm_head);
    }
    convert(weights_.final_norm);
    for (LayerWeights& layer : weights_.layers) {
      for (at::Tensor* weight :
           {&layer.input_norm, &layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.post_attention_norm,
            &layer.gate_proj, &layer.up_proj, &layer.down_proj, &layer.q_bias, &layer.k_bias, &layer.v_bias,
            &layer.o_bias, &layer.gate_bias, &layer.up_bias, &layer.down_bias}) {
        convert(*weight);
      }
    }
    device_ = weights_.embed_tokens.device();
    keys_.resize(weights_.layers.size());
    values_.resize(weights_.layers.size());
  }

  const ModelConfig& config() const override { return weights_.config; }
  int64_t max_tokens_per_pass() const override { return kMaxPassTokens; }
  absl::Status Reserve(int64_t slot, int64_t positions) override;
  absl::StatusOr<at::Tensor> Forward(absl::Span<const Segment> segments) override;
  absl::StatusOr<at::Tensor> Logits(const at::Tensor& hidden) override;

 private:
  void GrowCaches(int64_t positions);
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor Attend(int64_t layer, absl::Span<const Segment> segments, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v);
  at::Tensor Run(absl::Span<const Segment> segments);

  ModelWeights weights_;
  const c10::ScalarType dtype_;
  const int64_t slots_;
  c10::Device device_ = c10::Device(c10::kCPU);
  int64_t capacity_ = 0;
  std::vector<at::Tensor> keys_, values_;  // a layer: [slots, kv_heads, capacity_, head_dim]
  RopeTable rope_;                         // on the device
  // Of the pass that is running.
  at::Tensor slot_index_, position_index_;  // [rows]
  at::Tensor decode_mask_;                  // [rows, 1, 1, longest], true where a row sees a position
  int64_t longest_ = 0;
};

absl::Status AtenDecoder::Reserve(int64_t, int64_t positions) {
  if (rope_.cos.defined() && rope_.cos.size(0) >= positions) return absl::OkStatus();
  const int64_t known = rope_.cos.defined() ? rope_.cos.size(0) : 0;
  const RopeTable table = MakeRopeTable(weights_.config, std::max(positions, 2 * known));
  rope_ = {table.cos.to(device_), table.sin.to(device_)};
  return absl::OkStatus();
}

// Room for as many positions as sequences really have, not as they might: most end long before max_tokens.
void AtenDecoder::GrowCaches(int64_t positions) {
  if (positions <= capacity_) return;
  const int64_t capacity = (std::max(positions, capacity_ + capacity_ / 2) + kCacheStep - 1) / kCacheStep * kCacheStep;
  const ModelConfig& config = weights_.config;
  for (auto* caches : {&keys_, &values_}) {
    for (at::Tensor& cache : *caches) {
      at::Tensor grown = at::zeros({slots_, config.num_key_value_heads, capacity, config.head_dim},
                                   at::TensorOptions().dtype(dtype_).device(device_));
      if (cache.defined()) grown.narrow(2, 0, capacity_).copy_(cache);
      cache = std::move(grown);
    }
  }
  capacity_ = capacity;
}

at::Tensor AtenDecoder::Norm(const at::Tensor& x, const at::Tensor& weight) const {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.pow(2).mean(-1, true) + weights_.config.rms_norm_eps);
  return weight * (wide * scale).to(dtype_);
}

// q: [rows, heads, head_dim]; k, v: [rows, kv_heads, head_dim]. Returns [rows, heads * head_dim].
at::Tensor AtenDecoder::Attend(int64_t layer, absl::Span<const Segment> segments, const at::Tensor& q,
                               const at::Tensor& k, const at::Tensor& v) {
  at::Tensor& keys = keys_[static_cast<size_t>(layer)];
  at::Tensor& values = values_[static_cast<size_t>(layer)];
  keys.permute({0, 2, 1, 3}).index_put_({slot_index_, position_index_}, k);
  values.permute({0, 2, 1, 3}).index_put_({slot_index_, position_index_}, v);
  const bool grouped = weights_.config.num_attention_heads != weights_.config.num_key_value_heads;
  if (decode_mask_.defined()) {
    const at::Tensor k_rows = keys.narrow(2, 0, longest_).index_select(0, slot_index_);
    const at::Tensor v_rows = values.narrow(2, 0, longest_).index_select(0, slot_index_);
    const at::Tensor out = at::scaled_dot_product_attention(q.unsqueeze(2), k_rows, v_rows, decode_mask_, 0.0, false,
                                                            std::nullopt, grouped);
    return out.reshape({q.size(0), -1});
  }
  std::vector<at::Tensor> outs;
  int64_t row = 0;
  for (const Segment& segment : segments) {
    const auto count = static_cast<int64_t>(segment.tokens.size());
    const int64_t seen = segment.start + count;
    const at::Tensor q_rows = q.narrow(0, row, count).transpose(0, 1).unsqueeze(0);
    const at::Tensor k_rows = keys[segment.slot].narrow(1, 0, seen).unsqueeze(0);
    const at::Tensor v_rows = values[segment.slot].narrow(1, 0, seen).unsqueeze(0);
    std::optional<at::Tensor> mask;
    if (segment.start > 0) {
      const auto options = at::TensorOptions().dtype(at::kLong).device(device_);
      mask = at::arange(seen, options).unsqueeze(0) <= at::arange(segment.start, seen, options).unsqueeze(1);
    }
    const at::Tensor out =
        at::scaled_dot_product_attention(q_rows, k_rows, v_rows, mask, 0.0, segment.start == 0, std::nullopt, grouped);
    outs.push_back(out.squeeze(0).transpose(0, 1).reshape({count, -1}));
    row += count;
  }
  return outs.size() == 1 ? outs[0] : at::cat(outs, 0);
}

at::Tensor AtenDecoder::Run(absl::Span<const Segment> segments) {
  const c10::InferenceMode inference;
  const ModelConfig& config = weights_.config;
  std::vector<int64_t> tokens, slots, positions, wanted;
  bool decode = true;  // one row a sequence
  longest_ = 0;
  for (const Segment& segment : segments) {
    const auto count = static_cast<int64_t>(segment.tokens.size());
    decode = decode && count == 1;
    longest_ = std::max(longest_, segment.start + count);
    for (int64_t i = 0; i < count; ++i) {
      const bool take =
          segment.wanted == Segment::Wanted::kAll || (segment.wanted == Segment::Wanted::kLast && i + 1 == count);
      if (take) wanted.push_back(static_cast<int64_t>(tokens.size()));
      tokens.push_back(segment.tokens[static_cast<size_t>(i)]);
      slots.push_back(segment.slot);
      positions.push_back(segment.start + i);
    }
  }
  GrowCaches(longest_);
  const auto to_device = [&](const std::vector<int64_t>& values) {
    return at::tensor(values, at::TensorOptions().dtype(at::kLong)).to(device_);
  };
  slot_index_ = to_device(slots);
  position_index_ = to_device(positions);
  decode_mask_ = at::Tensor();
  if (decode) {
    const at::Tensor places = at::arange(longest_, at::TensorOptions().dtype(at::kLong).device(device_));
    decode_mask_ = (places.unsqueeze(0) <= position_index_.unsqueeze(1)).unsqueeze(1).unsqueeze(1);
  }
  const auto rows = static_cast<int64_t>(tokens.size());
  const at::Tensor cos = rope_.cos.index_select(0, position_index_).unsqueeze(1);
  const at::Tensor sin = rope_.sin.index_select(0, position_index_).unsqueeze(1);
  at::Tensor x = weights_.embed_tokens.index_select(0, to_device(tokens));
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const at::Tensor normed = Norm(x, layer.input_norm);
    const auto heads = [&](const at::Tensor& weight, const at::Tensor& bias, int64_t count) {
      return Linear(normed, weight, bias).view({rows, count, config.head_dim});
    };
    const at::Tensor q = Rotate(heads(layer.q_proj, layer.q_bias, config.num_attention_heads), cos, sin);
    const at::Tensor k = Rotate(heads(layer.k_proj, layer.k_bias, config.num_key_value_heads), cos, sin);
    const at::Tensor v = heads(layer.v_proj, layer.v_bias, config.num_key_value_heads);
    x = x + Linear(Attend(static_cast<int64_t>(i), segments, q, k, v), layer.o_proj, layer.o_bias);
    const at::Tensor inner = Norm(x, layer.post_attention_norm);
    const at::Tensor gated =
        at::silu(Linear(inner, layer.gate_proj, layer.gate_bias)) * Linear(inner, layer.up_proj, layer.up_bias);
    x = x + Linear(gated, layer.down_proj, layer.down_bias);
  }
  return Norm(x.index_select(0, to_device(wanted)), weights_.final_norm);
}

absl::StatusOr<at::Tensor> AtenDecoder::Forward(absl::Span<const Segment> segments) {
  try {
    return Run(segments);
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
    return at::matmul(hidden, weights_.lm_head.t()).to(at::kFloat);
  } catch (const c10::Error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("logits: ", error.what_without_backtrace()));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> CreateAtenDecoder(ModelWeights weights, c10::ScalarType compute_dtype,
                                                           int64_t slots) {
  try {
    return std::make_unique<AtenDecoder>(std::move(weights), compute_dtype, slots);
  } catch (const c10::Error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("weights: ", error.what_without_backtrace()));
  }
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                         int64_t slots) {
  if (weights.embed_tokens.is_cpu()) return CreateCpuDecoder(std::move(weights), compute_dtype, slots);
  return CreateAtenDecoder(std::move(weights), compute_dtype, slots);
}

}  // namespace retort::internal
