#include "model/training/attention_plans.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <sstream>
#include <utility>

namespace retort::internal {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr size_t kMostPlans = 512;

// One graph and the names of its tensors.
class Builder {
 public:
  explicit Builder(const AttentionPlanKey& key) : key_(key), graph_(std::make_shared<fe::graph::Graph>()) {
    graph_->set_io_data_type(key.bf16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (key.dense) return;
    lengths_ = Integers("lengths", kLengths, key.samples, fe::DataType_t::INT32);
    strides_ = key.Strides();
    for (size_t i = 0; i < strides_.size(); ++i) {
      offsets_.push_back(Integers("offsets_" + std::to_string(strides_[i]), kFirstOffset + static_cast<int64_t>(i),
                                  key.samples + 1, key.wide ? fe::DataType_t::INT64 : fe::DataType_t::INT32));
    }
  }

  std::shared_ptr<fe::graph::Graph> Forward() {
    const Tensor q = Input("q", kQ, key_.heads, key_.q);
    const Tensor k = Input("k", kK, key_.kv_heads, key_.k);
    const Tensor v = Input("v", kV, key_.kv_heads, key_.v);
    auto options = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
    auto [out, log_sum] = graph_->sdpa(q, k, v, Masked(options));
    Describe(*out, kOut, key_.heads, key_.out).set_output(true);
    DescribeLogSum(*log_sum).set_output(true);
    return graph_;
  }

  std::shared_ptr<fe::graph::Graph> Backward() {
    const Tensor q = Input("q", kQ, key_.heads, key_.q);
    const Tensor k = Input("k", kK, key_.kv_heads, key_.k);
    const Tensor v = Input("v", kV, key_.kv_heads, key_.v);
    const Tensor out = Input("out", kOut, key_.heads, key_.out);
    const Tensor d_out = Input("d_out", kDOut, key_.heads, key_.d_out);
    fe::graph::Tensor_attributes log_sum;
    log_sum.set_name("log_sum");
    DescribeLogSum(log_sum);
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention_backward")
                       .set_deterministic_algorithm(key_.deterministic);
    if (key_.packed_q) options.set_max_total_seq_len_q(key_.tokens);
    if (key_.packed_kv) options.set_max_total_seq_len_kv(key_.tokens);
    auto [dq, dk, dv] = graph_->sdpa_backward(q, k, v, out, d_out, graph_->tensor(log_sum), Masked(options));
    Describe(*dq, kDQ, key_.heads, key_.dq).set_output(true);
    Describe(*dk, kDK, key_.kv_heads, key_.dk).set_output(true);
    Describe(*dv, kDV, key_.kv_heads, key_.dv).set_output(true);
    return graph_;
  }

 private:
  Tensor Integers(const std::string& name, int64_t id, int64_t count, fe::DataType_t type) {
    return graph_->tensor(fe::graph::Tensor_attributes()
                              .set_name(name)
                              .set_uid(id)
                              .set_dim({count, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_data_type(type));
  }

  Tensor OffsetsOf(int64_t stride) const {
    return offsets_[static_cast<size_t>(std::find(strides_.begin(), strides_.end(), stride) - strides_.begin())];
  }

  // [samples, heads, length, dim] in cuDNN's order of dimensions, over rows of `stride` elements.
  fe::graph::Tensor_attributes& Describe(fe::graph::Tensor_attributes& tensor, int64_t id, int64_t heads,
                                         int64_t stride) const {
    tensor.set_uid(id)
        .set_dim({key_.samples, heads, key_.length, key_.dim})
        .set_stride({key_.length * stride, key_.dim, stride, 1});
    if (!key_.dense) tensor.set_ragged_offset(OffsetsOf(stride));
    return tensor;
  }

  fe::graph::Tensor_attributes& DescribeLogSum(fe::graph::Tensor_attributes& tensor) const {
    tensor.set_uid(kLogSum).set_dim({key_.samples, key_.heads, key_.length, 1}).set_data_type(fe::DataType_t::FLOAT);
    if (key_.dense) return tensor.set_stride({key_.heads * key_.length, key_.length, 1, 1});
    const int64_t row = key_.log_sum_heads;
    return tensor.set_stride({key_.length * row, 1, row, 1}).set_ragged_offset(OffsetsOf(row));
  }

  Tensor Input(const std::string& name, int64_t id, int64_t heads, int64_t stride) {
    fe::graph::Tensor_attributes tensor;
    tensor.set_name(name);
    return graph_->tensor(Describe(tensor, id, heads, stride));
  }

  template <typename Options>
  Options& Masked(Options& options) const {
    options.set_attn_scale(key_.scale)
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    // The bound counts the row's own column: a column is seen if column + bound > row.
    if (key_.window > 0) options.set_diagonal_band_left_bound(static_cast<int>(key_.window));
    if (!key_.dense) options.set_padding_mask(true).set_seq_len_q(lengths_).set_seq_len_kv(lengths_);
    return options;
  }

  const AttentionPlanKey& key_;
  std::shared_ptr<fe::graph::Graph> graph_;
  Tensor lengths_;
  std::vector<int64_t> strides_;
  std::vector<Tensor> offsets_;
};

std::string Refusal(const char* step, fe::error_t error) {
  return std::string(step) + ": " + error.get_message() + " (code " +
         std::to_string(static_cast<int>(error.get_code())) + ")";
}

AttentionPlan Build(const AttentionPlanKey& key, cudnnHandle_t handle) {
  AttentionPlan plan;
  try {
    Builder builder(key);
    plan.graph = key.backward ? builder.Backward() : builder.Forward();
    fe::graph::Graph& graph = *plan.graph;
    if (fe::error_t error = graph.validate(); error.is_bad()) {
      plan.refusal = Refusal("validating the graph", error);
    } else if (error = graph.build_operation_graph(handle); error.is_bad()) {
      plan.refusal = Refusal("building the operation graph", error);
    } else if (error = graph.create_execution_plans({fe::HeurMode_t::A}); error.is_bad()) {
      plan.refusal = Refusal("asking for execution plans", error);
    } else if (error = graph.check_support(); error.is_bad()) {
      plan.refusal = Refusal("checking support", error);
    } else if (error = graph.build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE); error.is_bad()) {
      plan.refusal = Refusal("building the execution plan", error);
    } else if (error = graph.get_workspace_size(plan.workspace_bytes); error.is_bad()) {
      plan.refusal = Refusal("asking for the workspace's size", error);
    }
  } catch (const std::exception& error) {
    plan.refusal = std::string("building the graph: ") + error.what();
  }
  if (!plan.refusal.empty()) plan.graph.reset();
  return plan;
}

}  // namespace

std::vector<int64_t> AttentionPlanKey::Strides() const {
  std::vector<int64_t> different;
  if (dense) return different;
  for (const int64_t stride : {log_sum_heads, q, k, v, out, d_out, dq, dk, dv}) {
    if (stride != 0 && std::find(different.begin(), different.end(), stride) == different.end()) {
      different.push_back(stride);
    }
  }
  return different;
}

std::string AttentionPlanKey::Text() const {
  std::ostringstream text;
  text << (backward ? "backward" : "forward") << (dense ? " dense" : " ragged") << " device=" << device
       << " type=" << (bf16 ? "bf16" : "f16") << " samples=" << samples << " length=" << length << " tokens=" << tokens
       << " heads=" << heads << "/" << kv_heads << " dim=" << dim << " window=" << window << " scale=" << scale
       << " deterministic=" << deterministic << " packed=" << packed_q << packed_kv << " wide=" << wide
       << " strides=q:" << q << ",k:" << k << ",v:" << v << ",out:" << out;
  if (backward) text << ",d_out:" << d_out << ",dq:" << dq << ",dk:" << dk << ",dv:" << dv;
  return text.str();
}

const AttentionPlan& AttentionPlans::For(const AttentionPlanKey& key, cudnnHandle_t handle,
                                         const std::function<void(const std::string&)>& log) {
  auto found = plans_.find(key);
  if (found == plans_.end()) {
    if (plans_.size() >= kMostPlans) {
      plans_.erase(std::min_element(plans_.begin(), plans_.end(), [](const auto& a, const auto& b) {
        return a.second.last_use < b.second.last_use;
      }));
    }
    const auto begin = std::chrono::steady_clock::now();
    found = plans_.emplace(key, Build(key, handle)).first;
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
    AttentionPlan& plan = found->second;
    std::ostringstream line;
    line << "attention_plan " << key.Text() << " build_ms=" << taken.count();
    if (plan.refusal.empty()) {
      std::string name;
      if (plan.graph->get_plan_name(name).is_bad()) name = "unknown";
      line << " workspace_bytes=" << plan.workspace_bytes << " plan=" << name;
    } else {
      line << " refused=\"" << plan.refusal << "\"";
    }
    log(line.str());
  }
  found->second.last_use = ++uses_;
  return found->second;
}

}  // namespace retort::internal
