// The decoder for CPUs: packed weights, fused stages, one thread team that meets at barriers.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/generation/cpu_kernels.h"
#include "model/generation/decoder.h"
#include "model/generation/packed_matrix.h"
#include "model/generation/rope.h"
#include "model/generation/thread_pool.h"

namespace retort::internal {
namespace {

constexpr int64_t kMaxPassTokens = 4 * kMaxTileRows;
// Query vectors (rows x heads of a group) that attention takes at a time.
constexpr int64_t kAttentionRows = 24;

// f32, with zeros up to a multiple of the panel width.
using PaddedVector = std::vector<float>;

struct PackedLayer {
  PaddedVector input_norm;
  PackedMatrix qkv;  // each of q, k, v begins at a panel
  PaddedVector qkv_bias;
  PackedMatrix o_proj;
  PaddedVector o_bias;
  PaddedVector post_attention_norm;
  PackedMatrix gate_up;  // panels alternate
  PaddedVector gate_bias, up_bias;
  PackedMatrix down_proj;
  PaddedVector down_bias;
};

PaddedVector Pad(const at::Tensor& values) {
  const at::Tensor source = values.to(at::kFloat).contiguous();
  PaddedVector padded(static_cast<size_t>(RoundUpToPanel(source.numel())), 0.0F);
  std::memcpy(padded.data(), source.const_data_ptr<float>(), static_cast<size_t>(source.numel()) * sizeof(float));
  return padded;
}

PaddedVector PadIfDefined(const at::Tensor& values) { return values.defined() ? Pad(values) : PaddedVector(); }

// What one thread writes between barriers.
struct ThreadScratch {
  alignas(64) float tile[kGroupPanels * kMaxTileRows * kPanelWidth];
  std::vector<float> queries;  // [kAttentionRows, head_dim]
  std::vector<float> scores;   // [kAttentionRows, positions]
};

// The cache of one sequence. For each layer and KV head: keys as panels of 16 positions, [capacity / 16][head_dim][16],
// then values as panels of 16 features, [padded head_dim / 16][capacity][16].
struct Slot {
  PageBuffer pages;
  int64_t capacity = 0;
};

// One row of a pass.
struct Row {
  const Slot* slot;
  int64_t position;
  int32_t token;
};

// Consecutive rows of one segment whose attention is computed together.
struct AttentionItem {
  int64_t first_row;
  int64_t rows;
};

class CpuDecoder final : public Decoder {
 public:
  CpuDecoder(ModelConfig config, int64_t slots)
      : config_(std::move(config)),
        kernels_(ChooseCpuKernels()),
        pool_(std::max(1, at::get_num_threads())),
        slots_(static_cast<size_t>(slots)),
        scratch_(static_cast<size_t>(pool_.threads())),
        query_width_(RoundUpToPanel(config_.num_attention_heads * config_.head_dim)),
        kv_width_(RoundUpToPanel(config_.num_key_value_heads * config_.head_dim)),
        hidden_width_(RoundUpToPanel(config_.hidden_size)),
        inner_width_(RoundUpToPanel(config_.intermediate_size)) {
    for (auto& scratch : scratch_) scratch = std::make_unique<ThreadScratch>();
  }

  absl::Status Pack(ModelWeights weights, c10::ScalarType compute_dtype);

  const ModelConfig& config() const override { return config_; }
  int64_t max_tokens_per_pass() const override { return kMaxPassTokens; }
  absl::Status Reserve(int64_t slot, int64_t positions) override;
  absl::StatusOr<at::Tensor> Forward(absl::Span<const Segment> segments) override;
  absl::StatusOr<at::Tensor> Logits(const at::Tensor& hidden) override;

 private:
  int64_t KeyFloats(const Slot& slot) const { return slot.capacity * config_.head_dim; }
  int64_t ValueFloats(const Slot& slot) const { return slot.capacity * RoundUpToPanel(config_.head_dim); }
  float* Keys(const Slot& slot, int64_t layer, int64_t kv_head) const {
    return static_cast<float*>(slot.pages.data()) +
           (layer * config_.num_key_value_heads + kv_head) * (KeyFloats(slot) + ValueFloats(slot));
  }
  float* Values(const Slot& slot, int64_t layer, int64_t kv_head) const {
    return Keys(slot, layer, kv_head) + KeyFloats(slot);
  }
  void Embed(int32_t token, float* out) const;
  void RotateAndStore(const Row& row, int64_t layer, float* qkv) const;
  void Attend(const AttentionItem& item, int64_t layer, int64_t kv_head, ThreadScratch& scratch);
  // Computes a x matrix in tiles shared out over the team; `finish`(tile, tile_stride, first panel, panels, first row,
  // rows) takes each.
  template <typename Finish>
  void Multiply(const PackedMatrix& matrix, const float* a, int64_t lda, int64_t rows, ThreadScratch& scratch,
                const Finish& finish);
  void MultiplyAndAdd(const PackedMatrix& matrix, const PaddedVector& bias, const float* a, int64_t lda, int64_t rows,
                      ThreadScratch& scratch, float* c, int64_t ldc);
  void RunLayer(int64_t index, int64_t rows, ThreadScratch& scratch);

  const ModelConfig config_;
  const CpuKernels& kernels_;
  ThreadPool pool_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<ThreadScratch>> scratch_;
  const int64_t query_width_, kv_width_, hidden_width_, inner_width_;

  std::vector<PackedLayer> layers_;
  PaddedVector final_norm_;
  PackedMatrix lm_head_;
  at::Tensor embed_tokens_;  // [vocab, hidden]; undefined when tied: rows are then taken from lm_head_
  RopeTable rope_;

  // Of the pass that is running.
  std::vector<Row> rows_;
  std::vector<AttentionItem> attention_items_;
  std::vector<float> residual_;  // [rows, hidden_width_]
  std::vector<float> normed_;    // [rows, hidden_width_]
  std::vector<float> qkv_;       // [rows, query_width_ + 2 * kv_width_]
  std::vector<float> attended_;  // [rows, query_width_]
  std::vector<float> inner_;     // [rows, inner_width_]
};

absl::Status CpuDecoder::Pack(ModelWeights weights, c10::ScalarType compute_dtype) {
  const auto rounded = [&](const at::Tensor& weight) {
    return compute_dtype == c10::ScalarType::BFloat16 ? weight.to(c10::ScalarType::BFloat16) : weight;
  };
  for (LayerWeights& layer : weights.layers) {
    PackedLayer packed;
    packed.input_norm = Pad(rounded(layer.input_norm));
    packed.post_attention_norm = Pad(rounded(layer.post_attention_norm));
    const std::array<Linear, 3> qkv = SplitQkv(config_, layer);
    ASSIGN_OR_RETURN(
        packed.qkv,
        PackedMatrix::Pack({rounded(qkv[0].weight), rounded(qkv[1].weight), rounded(qkv[2].weight)}, false, pool_));
    if (qkv[0].bias.defined()) {
      for (const Linear& part : qkv) {
        const PaddedVector padded = Pad(rounded(part.bias));
        packed.qkv_bias.insert(packed.qkv_bias.end(), padded.begin(), padded.end());
      }
    }
    ASSIGN_OR_RETURN(packed.o_proj, PackedMatrix::Pack({rounded(layer[kO].weight)}, false, pool_));
    packed.o_bias = PadIfDefined(layer[kO].bias);
    const auto [gate, up] = SplitGateUp(config_, layer);
    ASSIGN_OR_RETURN(packed.gate_up, PackedMatrix::Pack({rounded(gate.weight), rounded(up.weight)}, true, pool_));
    packed.gate_bias = PadIfDefined(gate.bias);
    packed.up_bias = PadIfDefined(up.bias);
    ASSIGN_OR_RETURN(packed.down_proj, PackedMatrix::Pack({rounded(layer[kDown].weight)}, false, pool_));
    packed.down_bias = PadIfDefined(layer[kDown].bias);
    layers_.push_back(std::move(packed));
    layer = LayerWeights();  // not both copies of the whole model at once
  }
  final_norm_ = Pad(rounded(weights.final_norm));
  const bool tied = weights.lm_head.is_alias_of(weights.embed_tokens);
  ASSIGN_OR_RETURN(lm_head_, PackedMatrix::Pack({rounded(weights.lm_head)}, false, pool_));
  if (!tied) embed_tokens_ = rounded(weights.embed_tokens).contiguous();
  return absl::OkStatus();
}

absl::Status CpuDecoder::Reserve(int64_t index, int64_t positions) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  const int64_t capacity = RoundUpToPanel(positions);
  const int64_t known = rope_.cos.defined() ? rope_.cos.size(0) : 0;
  if (capacity > known) rope_ = MakeRopeTable(config_, std::max(capacity, 2 * known));
  if (capacity <= slot.capacity) return absl::OkStatus();
  const int64_t floats = config_.num_hidden_layers * config_.num_key_value_heads * capacity *
                         (config_.head_dim + RoundUpToPanel(config_.head_dim));
  slot = Slot();
  absl::StatusOr<PageBuffer> pages = PageBuffer::Allocate(floats * static_cast<int64_t>(sizeof(float)), false);
  if (!pages.ok()) return WithContext(pages.status(), absl::StrCat("KV cache of a sequence of ", positions, " tokens"));
  slot.pages = *std::move(pages);
  slot.capacity = capacity;
  return absl::OkStatus();
}

void CpuDecoder::Embed(int32_t token, float* out) const {
  if (!embed_tokens_.defined()) {
    lm_head_.UnpackRow(token, out);
    return;
  }
  const auto copy = [&](const auto* rows) {
    for (int64_t i = 0; i < config_.hidden_size; ++i)
      out[i] = static_cast<float>(rows[token * config_.hidden_size + i]);
  };
  switch (embed_tokens_.scalar_type()) {
    case c10::ScalarType::BFloat16:
      return copy(embed_tokens_.const_data_ptr<c10::BFloat16>());
    case c10::ScalarType::Half:
      return copy(embed_tokens_.const_data_ptr<c10::Half>());
    default:
      return copy(embed_tokens_.const_data_ptr<float>());
  }
}

// Rotates the row's queries in place (and scales them by 1 / sqrt(head_dim)), its keys into the cache, and copies its
// values there.
void CpuDecoder::RotateAndStore(const Row& row, int64_t layer, float* qkv) const {
  const int64_t head_dim = config_.head_dim;
  const int64_t half = head_dim / 2;
  const float* cos = rope_.cos.const_data_ptr<float>() + row.position * half;
  const float* sin = rope_.sin.const_data_ptr<float>() + row.position * half;
  const auto scale = static_cast<float>(config_.attention_scale);
  for (int64_t head = 0; head < config_.num_attention_heads; ++head) {
    float* q = qkv + head * head_dim;
    for (int64_t i = 0; i < half; ++i) {
      const float low = q[i];
      const float high = q[i + half];
      q[i] = (low * cos[i] - high * sin[i]) * scale;
      q[i + half] = (high * cos[i] + low * sin[i]) * scale;
    }
  }
  for (int64_t head = 0; head < config_.num_key_value_heads; ++head) {
    const float* k = qkv + query_width_ + head * head_dim;
    float* keys =
        Keys(*row.slot, layer, head) + row.position / kPanelWidth * kPanelWidth * head_dim + row.position % kPanelWidth;
    for (int64_t i = 0; i < half; ++i) {
      keys[i * kPanelWidth] = k[i] * cos[i] - k[i + half] * sin[i];
      keys[(i + half) * kPanelWidth] = k[i + half] * cos[i] + k[i] * sin[i];
    }
    const float* v = qkv + query_width_ + kv_width_ + head * head_dim;
    float* values = Values(*row.slot, layer, head) + row.position * kPanelWidth;
    for (int64_t i = 0; i < head_dim; ++i)
      values[i / kPanelWidth * row.slot->capacity * kPanelWidth + i % kPanelWidth] = v[i];
  }
}

void CpuDecoder::Attend(const AttentionItem& item, int64_t layer, int64_t kv_head, ThreadScratch& scratch) {
  const int64_t head_dim = config_.head_dim;
  const int64_t group = config_.num_attention_heads / config_.num_key_value_heads;
  const int64_t qkv_width = query_width_ + 2 * kv_width_;
  const Slot& slot = *rows_[static_cast<size_t>(item.first_row)].slot;
  const int64_t first_position = rows_[static_cast<size_t>(item.first_row)].position;
  const int64_t positions = first_position + item.rows;  // that the last row sees
  const int64_t padded = RoundUpToPanel(positions);
  // As many of the group's heads at a time as fit beside the rows.
  for (int64_t head0 = 0; head0 < group;) {
    const int64_t heads = std::min(group - head0, std::max<int64_t>(1, kAttentionRows / item.rows));
    const int64_t vectors = item.rows * heads;
    scratch.queries.resize(static_cast<size_t>(vectors * head_dim));
    if (static_cast<int64_t>(scratch.scores.size()) < vectors * padded)
      scratch.scores.resize(static_cast<size_t>(vectors * padded));
    float* scores = scratch.scores.data();
    const auto row_of = [&](int64_t vector) { return item.first_row + vector / heads; };
    const auto column_of = [&](int64_t vector) { return (kv_head * group + head0 + vector % heads) * head_dim; };
    for (int64_t v = 0; v < vectors; ++v) {
      std::memcpy(scratch.queries.data() + v * head_dim, qkv_.data() + row_of(v) * qkv_width + column_of(v),
                  static_cast<size_t>(head_dim) * sizeof(float));
    }
    const float* keys = Keys(slot, layer, kv_head);
    const int64_t tile_stride = vectors * kPanelWidth;
    for (int64_t position = 0; position < positions; position += kGroupPanels * kPanelWidth) {
      const int64_t panels = std::min(kGroupPanels, (padded - position) / kPanelWidth);
      kernels_.multiply_f32(scratch.queries.data(), head_dim, vectors, keys + position * head_dim,
                            head_dim * kPanelWidth, panels, head_dim, scratch.tile, tile_stride);
      for (int64_t p = 0; p < panels; ++p)
        kernels_.store_tile(scratch.tile + p * tile_stride, vectors, nullptr, scores + position + p * kPanelWidth,
                            padded);
    }
    float inverse_sums[kAttentionRows];
    for (int64_t v = 0; v < vectors; ++v)
      inverse_sums[v] = kernels_.exponentiate(scores + v * padded, first_position + v / heads + 1, padded);
    const float* values = Values(slot, layer, kv_head);
    for (int64_t feature = 0; feature < head_dim; feature += kGroupPanels * kPanelWidth) {
      const int64_t panels = std::min(kGroupPanels, (RoundUpToPanel(head_dim) - feature) / kPanelWidth);
      kernels_.multiply_f32(scores, padded, vectors, values + feature * slot.capacity, slot.capacity * kPanelWidth,
                            panels, positions, scratch.tile, tile_stride);
      const int64_t width = std::min(head_dim - feature, panels * kPanelWidth);
      for (int64_t v = 0; v < vectors; ++v) {
        float* out = attended_.data() + row_of(v) * query_width_ + column_of(v) + feature;
        for (int64_t i = 0; i < width; ++i)
          out[i] = scratch.tile[i / kPanelWidth * tile_stride + v * kPanelWidth + i % kPanelWidth] * inverse_sums[v];
      }
    }
    head0 += heads;
  }
}

template <typename Finish>
void CpuDecoder::Multiply(const PackedMatrix& matrix, const float* a, int64_t lda, int64_t rows, ThreadScratch& scratch,
                          const Finish& finish) {
  const int64_t groups = (matrix.panels() + kGroupPanels - 1) / kGroupPanels;
  const int64_t row_tiles = (rows + kMaxTileRows - 1) / kMaxTileRows;
  const int64_t grain = std::max<int64_t>(1, groups / (16 * pool_.threads()));
  pool_.Share(groups * row_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / groups * kMaxTileRows;
      const int64_t tile_rows = std::min(kMaxTileRows, rows - row);
      const int64_t panel = i % groups * kGroupPanels;
      const int64_t panels = std::min(kGroupPanels, matrix.panels() - panel);
      const int64_t tile_stride = tile_rows * kPanelWidth;
      if (matrix.bf16()) {
        kernels_.multiply_bf16(a + row * lda, lda, tile_rows, static_cast<const uint16_t*>(matrix.panel(panel)),
                               matrix.panel_stride(), panels, matrix.in_features(), scratch.tile, tile_stride);
      } else {
        kernels_.multiply_f32(a + row * lda, lda, tile_rows, static_cast<const float*>(matrix.panel(panel)),
                              matrix.panel_stride(), panels, matrix.in_features(), scratch.tile, tile_stride);
      }
      finish(scratch.tile, tile_stride, panel, panels, row, tile_rows);
    }
  });
}

void CpuDecoder::MultiplyAndAdd(const PackedMatrix& matrix, const PaddedVector& bias, const float* a, int64_t lda,
                                int64_t rows, ThreadScratch& scratch, float* c, int64_t ldc) {
  Multiply(matrix, a, lda, rows, scratch,
           [&](const float* tile, int64_t tile_stride, int64_t panel, int64_t panels, int64_t row, int64_t tile_rows) {
             for (int64_t p = 0; p < panels; ++p) {
               const int64_t column = (panel + p) * kPanelWidth;
               kernels_.add_tile(tile + p * tile_stride, tile_rows, bias.empty() ? nullptr : bias.data() + column,
                                 c + row * ldc + column, ldc);
             }
           });
}

void CpuDecoder::RunLayer(int64_t index, int64_t rows, ThreadScratch& scratch) {
  const PackedLayer& layer = layers_[static_cast<size_t>(index)];
  const int64_t qkv_width = query_width_ + 2 * kv_width_;
  const auto norm = [&](const PaddedVector& weight) {
    pool_.Share(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernels_.rms_norm(residual_.data() + row * hidden_width_, weight.data(), config_.hidden_size,
                          config_.rms_norm_eps, normed_.data() + row * hidden_width_);
    });
  };
  norm(layer.input_norm);
  Multiply(layer.qkv, normed_.data(), hidden_width_, rows, scratch,
           [&](const float* tile, int64_t tile_stride, int64_t panel, int64_t panels, int64_t row, int64_t tile_rows) {
             for (int64_t p = 0; p < panels; ++p) {
               const int64_t column = (panel + p) * kPanelWidth;
               kernels_.store_tile(tile + p * tile_stride, tile_rows,
                                   layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data() + column,
                                   qkv_.data() + row * qkv_width + column, qkv_width);
             }
           });
  pool_.Share(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      RotateAndStore(rows_[static_cast<size_t>(row)], index, qkv_.data() + row * qkv_width);
  });
  const int64_t kv_heads = config_.num_key_value_heads;
  pool_.Share(static_cast<int64_t>(attention_items_.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      Attend(attention_items_[static_cast<size_t>(i / kv_heads)], index, i % kv_heads, scratch);
  });
  MultiplyAndAdd(layer.o_proj, layer.o_bias, attended_.data(), query_width_, rows, scratch, residual_.data(),
                 hidden_width_);
  norm(layer.post_attention_norm);
  Multiply(layer.gate_up, normed_.data(), hidden_width_, rows, scratch,
           [&](const float* tile, int64_t tile_stride, int64_t panel, int64_t, int64_t row, int64_t tile_rows) {
             const int64_t column = panel / 2 * kPanelWidth;
             kernels_.silu_tile(tile, tile + tile_stride, tile_rows,
                                layer.gate_bias.empty() ? nullptr : layer.gate_bias.data() + column,
                                layer.up_bias.empty() ? nullptr : layer.up_bias.data() + column,
                                inner_.data() + row * inner_width_ + column, inner_width_);
           });
  MultiplyAndAdd(layer.down_proj, layer.down_bias, inner_.data(), inner_width_, rows, scratch, residual_.data(),
                 hidden_width_);
}

absl::StatusOr<at::Tensor> CpuDecoder::Forward(absl::Span<const Segment> segments) {
  rows_.clear();
  attention_items_.clear();
  std::vector<int64_t> wanted;
  const int64_t group = config_.num_attention_heads / config_.num_key_value_heads;
  const int64_t rows_together = std::max<int64_t>(1, kAttentionRows / group);
  for (const Segment& segment : segments) {
    const Slot& slot = slots_[static_cast<size_t>(segment.slot)];
    const auto count = static_cast<int64_t>(segment.tokens.size());
    RETORT_CHECK(count > 0 && segment.start + count <= slot.capacity);
    const auto first = static_cast<int64_t>(rows_.size());
    for (int64_t i = 0; i < count; ++i) {
      if (i % rows_together == 0) attention_items_.push_back({first + i, std::min(rows_together, count - i)});
      const bool take =
          segment.wanted == Segment::Wanted::kAll || (segment.wanted == Segment::Wanted::kLast && i + 1 == count);
      if (take) wanted.push_back(first + i);
      rows_.push_back({&slot, segment.start + i, segment.tokens[static_cast<size_t>(i)]});
    }
  }
  const auto rows = static_cast<int64_t>(rows_.size());
  RETORT_CHECK(rows > 0 && rows <= kMaxPassTokens);
  const auto grow = [&](std::vector<float>& buffer, int64_t width) {
    if (static_cast<int64_t>(buffer.size()) < rows * width) buffer.assign(static_cast<size_t>(rows * width), 0.0F);
  };
  grow(residual_, hidden_width_);
  grow(normed_, hidden_width_);
  grow(qkv_, query_width_ + 2 * kv_width_);
  grow(attended_, query_width_);
  grow(inner_, inner_width_);
  const int64_t hidden_size = config_.hidden_size;
  at::Tensor hidden = at::empty({static_cast<int64_t>(wanted.size()), hidden_size}, at::kFloat);
  float* out = hidden.mutable_data_ptr<float>();
  pool_.Run([&](int thread) {
    ThreadScratch& scratch = *scratch_[static_cast<size_t>(thread)];
    pool_.Share(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* to = residual_.data() + row * hidden_width_;
        Embed(rows_[static_cast<size_t>(row)].token, to);
        std::fill(to + hidden_size, to + hidden_width_, 0.0F);
      }
    });
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) RunLayer(layer, rows, scratch);
    pool_.Share(static_cast<int64_t>(wanted.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = wanted[static_cast<size_t>(i)];
        float* normed = normed_.data() + row * hidden_width_;
        kernels_.rms_norm(residual_.data() + row * hidden_width_, final_norm_.data(), hidden_size, config_.rms_norm_eps,
                          normed);
        std::memcpy(out + i * hidden_size, normed, static_cast<size_t>(hidden_size) * sizeof(float));
      }
    });
  });
  return hidden;
}

absl::StatusOr<at::Tensor> CpuDecoder::Logits(const at::Tensor& hidden) {
  const int64_t rows = hidden.size(0);
  const int64_t width = lm_head_.panels() * kPanelWidth;
  at::Tensor logits = at::empty({rows, width}, at::kFloat);
  const float* a = hidden.const_data_ptr<float>();
  float* out = logits.mutable_data_ptr<float>();
  pool_.Run([&](int thread) {
    Multiply(
        lm_head_, a, config_.hidden_size, rows, *scratch_[static_cast<size_t>(thread)],
        [&](const float* tile, int64_t tile_stride, int64_t panel, int64_t panels, int64_t row, int64_t tile_rows) {
          for (int64_t p = 0; p < panels; ++p)
            kernels_.store_tile(tile + p * tile_stride, tile_rows, nullptr,
                                out + row * width + (panel + p) * kPanelWidth, width);
        });
  });
  return logits.narrow(1, 0, config_.vocab_size);
}

}  // namespace

bool CpuDecoderSupports(const ModelConfig& config) {
  const bool windowed = std::any_of(config.sliding_window.begin(), config.sliding_window.end(),
                                    [](int64_t window) { return window > 0; });
  return !config.mla.has_value() && !config.moe.has_value() && !config.qk_norm && !windowed &&
         !config.rope.interleaved && config.rope.dim == config.head_dim && config.rope.type != RopeType::kLongrope;
}

absl::StatusOr<std::unique_ptr<Decoder>> CreateCpuDecoder(ModelWeights weights, c10::ScalarType compute_dtype,
                                                          int64_t slots) {
  auto decoder = std::make_unique<CpuDecoder>(weights.config, slots);
  RETURN_IF_ERROR(decoder->Pack(std::move(weights), compute_dtype));
  return decoder;
}

}  // namespace retort::internal
