#include "model/training/cpu_training_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "common/status.h"
#include "model/generation/rope.h"
#include "model/torch_status.h"
#include "model/training/batch_plan.h"
#include "model/training/cpu_head.h"
#include "model/training/cpu_layer.h"

namespace retort {
namespace {

using namespace internal;

class CpuTrainingModel final : public TrainingModel {
 public:
  static absl::StatusOr<std::unique_ptr<TrainingModel>> Make(ModelWeights weights, const LoraAdapter& adapter,
                                                             const TrainingModelOptions& options) {
    ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, at::kCPU));
    auto model = std::make_unique<CpuTrainingModel>(weights.config, options, std::move(flat));
    model->embed_tokens_ = weights.embed_tokens.contiguous();
    const at::Tensor head =
        weights.lm_head.is_alias_of(weights.embed_tokens) ? model->embed_tokens_ : weights.lm_head.contiguous();
    ASSIGN_OR_RETURN(model->head_, CpuHead::Create(head, model->pool_));
    model->final_norm_.assign(static_cast<size_t>(PaddedWidth(weights.config.hidden_size)), 0.0F);
    std::copy_n(weights.final_norm.contiguous().const_data_ptr<float>(), weights.config.hidden_size,
                model->final_norm_.data());
    model->layers_.reserve(weights.layers.size());
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      ASSIGN_OR_RETURN(CpuLayer layer, CpuLayer::Create(weights.config, weights.layers[i], static_cast<int64_t>(i),
                                                        model->adapter_, model->pool_));
      model->layers_.push_back(std::move(layer));
      weights.layers[i] = LayerWeights{};  // packed: the original may go
    }
    return model;
  }

  CpuTrainingModel(const ModelConfig& config, const TrainingModelOptions& options, FlatAdapter adapter)
      : config_(config),
        options_(options),
        kernels_(ChooseTrainKernels()),
        adapter_(std::move(adapter)),
        pool_(at::get_num_threads()) {}

  const std::vector<ParameterSlice>& parameters() const override { return adapter_.parameters(); }
  at::Tensor& flat_parameters() override { return adapter_.flat(); }
  LoraAdapter ExportAdapter() const override { return adapter_.Export(); }

  absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch, double grad_scale, uint64_t dropout_key,
                                          at::Tensor& flat_gradient) override {
    return CatchTorchErrors("training step", [&]() -> absl::StatusOr<LossSum> {
      RETORT_CHECK(flat_gradient.is_contiguous() && flat_gradient.numel() == adapter_.flat().numel());
      Pass pass{.dropout = {dropout_key, options_.lora_dropout},
                .grad_scale = static_cast<float>(grad_scale),
                .flat_gradient = flat_gradient.mutable_data_ptr<float>()};
      return Run(batch, pass);
    });
  }

  absl::StatusOr<LossSum> Loss(const MicroBatch& batch) override {
    return CatchTorchErrors("loss", [&]() -> absl::StatusOr<LossSum> {
      Pass pass{};
      return Run(batch, pass);
    });
  }

 private:
  // One call: its inputs and where its matrices lie.
  struct Pass {
    CpuDropout dropout;
    float grad_scale = 1.0F;
    float* flat_gradient = nullptr;  // null: the loss alone
    const MicroBatch* batch = nullptr;
    BatchPlan plan;
    Rope rope;
    std::vector<AttentionTask> attention_tasks;
    int64_t tokens = 0;
    int64_t trained = 0;
    int64_t block_rows = 0;
    int64_t trained_block_rows = 0;
    std::vector<CpuSavedLayer> saved;  // one a layer, or two that layers take in turns
    MatrixView last;                   // [tokens, hidden]: the last layer's output
    MatrixView trained_hidden;         // [trained, hidden]: after the final norm
    MatrixView trained_gradient;       // [trained, hidden]
    CpuGradients gradients;
    std::vector<CpuScratch> scratch;  // by thread
    std::vector<double> losses;       // [trained]

    bool backward() const { return flat_gradient != nullptr; }
    const CpuSavedLayer& at(size_t layer) const { return saved[layer % saved.size()]; }
  };

  absl::StatusOr<LossSum> Run(const MicroBatch& batch, Pass& pass) {
    ASSIGN_OR_RETURN(pass.plan, PlanBatch(batch, config_.vocab_size));
    pass.batch = &batch;
    pass.tokens = static_cast<int64_t>(batch.input_ids.size());
    pass.trained = static_cast<int64_t>(pass.plan.rows.size());
    if (pass.backward()) std::fill_n(pass.flat_gradient, adapter_.flat().numel(), 0.0F);
    LossSum sum{.trained_tokens = pass.trained};
    if (pass.trained == 0) return sum;
    PlanWork(pass);
    arena_.Reset();
    const int64_t counted = (Arrange(arena_, pass), arena_.used());
    if (absl::Status reserved = arena_.Reserve(counted); !reserved.ok()) return reserved;
    arena_.Reset();
    Arrange(arena_, pass);
    pool_.Run([&](int thread) { Work(pass, pass.scratch[thread]); });
    sum.loss = std::accumulate(pass.losses.begin(), pass.losses.end(), 0.0);
    return sum;
  }

  // Rows that are shared out evenly: no block larger than kBlockRows, whole rounds of blocks for the threads.
  int64_t BlockRows(int64_t rows) const {
    const int64_t rounds = (rows + kBlockRows * pool_.threads() - 1) / (kBlockRows * pool_.threads());
    const int64_t blocks = rounds * pool_.threads();
    return std::max<int64_t>(1, (rows + blocks - 1) / blocks);
  }

  void PlanWork(Pass& pass) {
    if (pass.plan.longest_sample > rope_positions_) {
      rope_positions_ = std::max<int64_t>(pass.plan.longest_sample, 2 * rope_positions_);
      rope_ = MakeRopeTable(config_, rope_positions_);
    }
    pass.rope = {rope_.cos.const_data_ptr<float>(), rope_.sin.const_data_ptr<float>(), pass.plan.positions.data()};
    const std::vector<int64_t>& offsets = pass.batch->sequence_offsets;
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      for (int64_t head = 0; head < config_.num_key_value_heads && offsets[i + 1] > offsets[i]; ++head) {
        pass.attention_tasks.push_back({offsets[i], offsets[i + 1] - offsets[i], head});
      }
    }
    std::stable_sort(pass.attention_tasks.begin(), pass.attention_tasks.end(),
                     [](const AttentionTask& a, const AttentionTask& b) { return a.tokens > b.tokens; });
    pass.block_rows = BlockRows(pass.tokens);
    pass.trained_block_rows = BlockRows(pass.trained);
    pass.losses.assign(static_cast<size_t>(pass.trained), 0.0);
  }

  void Arrange(Arena& arena, Pass& pass) const {
    const CpuLayer& layer = layers_.front();  // all are of one shape
    pass.saved.clear();
    const size_t kept = pass.backward() ? layers_.size() : std::min<size_t>(2, layers_.size());
    for (size_t i = 0; i < kept; ++i) pass.saved.push_back(layer.TakeSaved(arena, pass.tokens));
    pass.last = arena.Take(pass.tokens, config_.hidden_size);
    pass.trained_hidden = arena.Take(pass.trained, config_.hidden_size);
    if (pass.backward()) {
      pass.trained_gradient = arena.Take(pass.trained, config_.hidden_size);
      pass.gradients = layer.TakeGradients(arena, pass.tokens);
    }
    pass.scratch.clear();
    for (int thread = 0; thread < pool_.threads(); ++thread) {
      CpuScratch scratch{
          .normed = arena.Take(kBlockRows, layer.widest()),
          .wide = arena.Take(kBlockRows, layer.widest()),
          .dropped = arena.Take(kBlockRows, layer.widest()),
          .logits = arena.Take(kBlockRows, CpuHead::kSlice),
          .gradient = arena.Take(adapter_.rank() + CpuLinear::kGradientRows, 16 * CpuLinear::kGradientPanels)};
      scratch.attention = layer.attention().MakeScratch(arena, pass.plan.longest_sample);
      pass.scratch.push_back(scratch);
    }
  }

  // Shares out blocks of rows: body(first row, rows).
  template <typename Body>
  void ForBlocks(int64_t rows, int64_t block_rows, const Body& body) {
    pool_.Share((rows + block_rows - 1) / block_rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * block_rows;
        body(first, std::min(block_rows, rows - first));
      }
    });
  }

  template <typename Body>
  void ForTasks(int64_t count, const Body& body) {
    pool_.Share(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(task);
    });
  }

  // What every thread of the pool does in one call.
  void Work(Pass& pass, const CpuScratch& scratch) {
    ForTasks(static_cast<int64_t>(layers_.size()),
             [&](int64_t i) { layers_[i].PackAdapter(adapter_.flat().const_data_ptr<float>()); });
    ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) { Embed(pass, first, rows); });
    for (size_t i = 0; i < layers_.size(); ++i) {
      const CpuLayer& layer = layers_[i];
      const CpuSavedLayer& saved = pass.at(i);
      const MatrixView out = i + 1 < layers_.size() ? pass.at(i + 1).input : pass.last;
      ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) {
        layer.ForwardToAttention(first, rows, pass.rope, pass.dropout, scratch, saved);
      });
      ForTasks(static_cast<int64_t>(pass.attention_tasks.size()), [&](int64_t task) {
        layer.attention().Forward(pass.attention_tasks[task], saved.qkv, scratch.attention, saved.attention,
                                  saved.statistics);
      });
      ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) {
        layer.ForwardFromAttention(first, rows, pass.dropout, scratch, saved, out);
      });
    }
    CpuGradients gradients = pass.gradients;
    if (pass.backward()) {
      ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) {
        std::fill(gradients.out.row(first), gradients.out.row(first) + rows * gradients.out.ld, 0.0F);
      });
    }
    ForBlocks(pass.trained, pass.trained_block_rows,
              [&](int64_t first, int64_t rows) { Head(pass, scratch, first, rows); });
    if (!pass.backward()) return;
    for (size_t i = layers_.size(); i-- > 0;) {
      BackwardLayer(pass, scratch, i, gradients);
      std::swap(gradients.out, gradients.input);
    }
  }

  void Embed(const Pass& pass, int64_t first, int64_t rows) const {
    const int64_t width = config_.hidden_size;
    for (int64_t i = first; i < first + rows; ++i) {
      float* out = pass.at(0).input.row(i);
      std::copy_n(embed_tokens_.const_data_ptr<float>() + pass.batch->input_ids[i] * width, width, out);
      std::fill(out + width, out + PaddedWidth(width), 0.0F);
    }
  }

  void Head(Pass& pass, const CpuScratch& scratch, int64_t first, int64_t rows) const {
    const int64_t width = config_.hidden_size;
    const int64_t padded = PaddedWidth(width);
    for (int64_t i = first; i < first + rows; ++i) {
      kernels_.rms_norm(pass.last.row(pass.plan.rows[i]), final_norm_.data(), padded, width, config_.rms_norm_eps,
                        pass.trained_hidden.row(i));
    }
    head_.Run(pass.trained_hidden.From(first), rows, pass.plan.targets.data() + first, pass.grad_scale, scratch.logits,
              pass.trained_gradient.From(first), pass.losses.data() + first);
    if (!pass.backward()) return;
    for (int64_t i = first; i < first + rows; ++i) {
      float* out = pass.gradients.out.row(pass.plan.rows[i]);  // zeros
      kernels_.rms_norm_backward(pass.trained_gradient.row(i), pass.last.row(pass.plan.rows[i]), final_norm_.data(),
                                 out, padded, width, config_.rms_norm_eps, out);
    }
  }

  void BackwardLayer(const Pass& pass, const CpuScratch& scratch, size_t index, CpuGradients gradients) {
    const CpuLayer& layer = layers_[index];
    const CpuSavedLayer& saved = pass.at(index);
    if (index == 0) gradients.input = MatrixView{};
    ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) {
      layer.BackwardToAttention(first, rows, pass.dropout, scratch, saved, gradients);
    });
    ForTasks(static_cast<int64_t>(pass.attention_tasks.size()), [&](int64_t task) {
      layer.attention().Backward(pass.attention_tasks[task], saved.qkv, saved.statistics, gradients.attention,
                                 scratch.attention, gradients.qkv);
    });
    ForBlocks(pass.tokens, pass.block_rows, [&](int64_t first, int64_t rows) {
      layer.BackwardFromAttention(first, rows, pass.rope, pass.dropout, scratch, saved, gradients);
    });
    ForTasks(layer.gradient_tasks(), [&](int64_t task) {
      layer.Gradient(task, pass.tokens, pass.dropout, scratch, saved, gradients, pass.flat_gradient);
    });
  }

  const ModelConfig config_;
  const TrainingModelOptions options_;
  const TrainKernels& kernels_;
  FlatAdapter adapter_;
  ThreadPool pool_;
  at::Tensor embed_tokens_;  // [vocab, hidden]
  std::vector<float> final_norm_;
  CpuHead head_;
  std::vector<CpuLayer> layers_;
  RopeTable rope_;
  int64_t rope_positions_ = 0;
  Arena arena_;
};

}  // namespace

bool CpuTrainingSupports(const ModelConfig& config) {
  const bool windowed = std::any_of(config.sliding_window.begin(), config.sliding_window.end(),
                                    [](int64_t window) { return window > 0; });
  return !config.mla.has_value() && !config.moe.has_value() && !config.qk_norm && !config.fused_projections &&
         !windowed && !config.rope.interleaved && config.rope.dim == config.head_dim &&
         config.rope.type != RopeType::kLongrope;
}

absl::StatusOr<std::unique_ptr<TrainingModel>> MakeCpuTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                    const TrainingModelOptions& options) {
  return CpuTrainingModel::Make(std::move(weights), adapter, options);
}

}  // namespace retort
