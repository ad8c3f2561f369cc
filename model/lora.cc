#include "model/lora.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/diag.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <numbers>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/hash.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/lora_weights.h"
#include "model/torch_status.h"

namespace retort {
namespace {

// Stable for ever: an adapter's first weights are a function of seed and module name.
uint64_t StreamKey(uint64_t seed, const std::string& module) {
  Sha256 hash;
  hash.UpdateU64(seed);
  hash.UpdateField(module);
  const Sha256Digest digest = hash.Finish();
  uint64_t key = 0;
  for (int i = 0; i < 8; ++i) key = key << 8 | digest[static_cast<size_t>(i)];
  return key;
}

// U(-bound, bound).
at::Tensor DrawUniform(int64_t rows, int64_t columns, double bound, uint64_t key) {
  at::Tensor tensor = at::empty({rows, columns}, at::kFloat);
  float* values = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows * columns; ++i) {
    const PhiloxBlock block = PhiloxAt(key, static_cast<uint64_t>(i) / 2);
    values[i] = static_cast<float>((2.0 * UniformFromPhilox(block, static_cast<int>(i % 2)) - 1.0) * bound);
  }
  return tensor;
}

// Normal with this deviation, by Box and Muller.
at::Tensor DrawNormal(int64_t rows, int64_t columns, double deviation, uint64_t key) {
  at::Tensor tensor = at::empty({rows, columns}, at::kFloat);
  float* values = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows * columns; ++i) {
    const PhiloxBlock block = PhiloxAt(key, static_cast<uint64_t>(i));
    const double radius = std::sqrt(-2.0 * std::log1p(-UniformFromPhilox(block, 0)));
    values[i] = static_cast<float>(deviation * radius * std::cos(2.0 * std::numbers::pi * UniformFromPhilox(block, 1)));
  }
  return tensor;
}

// The largest `rank` singular values and vectors, by randomised subspace iteration (Halko, Martinsson and Tropp 2011,
// arXiv:0909.4061, algorithm 5.1 after 4.4) where `iterations` are given.
struct Principal {
  at::Tensor u, s, vh;  // [out, rank], [rank], [rank, in]
};
Principal PrincipalPart(const at::Tensor& weight, int64_t rank, std::optional<int64_t> iterations, uint64_t key) {
  if (!iterations.has_value()) {
    const auto [u, s, vh] = at::linalg_svd(weight, /*full_matrices=*/false);
    return {u.narrow(1, 0, rank), s.narrow(0, 0, rank), vh.narrow(0, 0, rank)};
  }
  const bool wide = weight.size(0) < weight.size(1);
  const at::Tensor a = wide ? weight.t() : weight;
  const auto basis = [](const at::Tensor& x) { return std::get<0>(at::linalg_qr(x)); };
  at::Tensor q = basis(at::matmul(a, DrawNormal(a.size(1), rank, 1.0, key).to(a.device())));
  for (int64_t i = 0; i < *iterations; ++i) q = basis(at::matmul(a, basis(at::matmul(a.t(), q))));
  const auto [inner, s, vh] = at::linalg_svd(at::matmul(q.t(), a), /*full_matrices=*/false);
  const at::Tensor u = at::matmul(q, inner);
  return wide ? Principal{vh.t(), s, u.t()} : Principal{u, s, vh};
}

// The principal part of the weight as B A, to be multiplied by the scaling.
LoraPair PissaPair(const at::Tensor& weight, int64_t rank, double scaling, std::optional<int64_t> iterations,
                   uint64_t key) {
  const Principal principal = PrincipalPart(weight.to(at::kFloat), rank, iterations, key);
  const at::Tensor root = at::diag(principal.s.div(scaling).sqrt());
  return {.a = at::matmul(root, principal.vh).to(at::kCPU).contiguous(),
          .b = at::matmul(principal.u, root).to(at::kCPU).contiguous()};
}

// PiSSA: A and B are the principal part of the weight, which the base lacks from then on.
absl::Status InitPissa(const LoraModule& module, const LoraConfig& config, const ModelWeights& weights, uint64_t key,
                       LoraPair& pair) {
  if (module.experts > 0) {
    return absl::UnimplementedError(
        absl::StrCat("init_lora_weights: ", config.init_lora_weights, " is not supported for experts"));
  }
  const int64_t rank = RankOf(config, module.name);
  if (rank > std::min(module.in_features, module.out_features)) {
    return absl::InvalidArgumentError(
        absl::StrCat("init_lora_weights: ", config.init_lora_weights, " wants a rank of at most ",
                     std::min(module.in_features, module.out_features), " for ", module.name, ", not ", rank));
  }
  std::optional<int64_t> iterations;
  absl::string_view rest = config.init_lora_weights;
  if (absl::ConsumePrefix(&rest, "pissa_niter_")) {
    int64_t parsed = 0;
    if (!absl::SimpleAtoi(rest, &parsed) || parsed < 0 || parsed > 1000) {
      return absl::InvalidArgumentError(absl::StrCat("init_lora_weights: \"", config.init_lora_weights,
                                                     "\" wants a number of iterations at its end"));
    }
    iterations = parsed;
  }
  const at::Tensor& weight = *WeightOf(weights, module.name);
  if (!weight.defined()) return NotPissa(module.name);
  pair = PissaPair(weight, rank, ScalingOf(config, module.name), iterations, key);
  pair.frozen_a = pair.a.clone();
  pair.frozen_b = pair.b.clone();
  return absl::OkStatus();
}

absl::Status InitModule(const LoraModule& module, const LoraConfig& config, const ModelWeights* weights, uint64_t seed,
                        LoraPair& pair) {
  const std::string& init = config.init_lora_weights;
  const int64_t rank = RankOf(config, module.name);
  const int64_t width = rank * std::max<int64_t>(1, module.experts);
  const uint64_t key = StreamKey(seed, module.name);
  const uint64_t key_b = StreamKey(seed, module.name + ".lora_B");
  const bool known = init == "true" || init == "false" || init == "gaussian";
  if (known && module.name == kEmbeddingModule) {
    pair.a = init == "false" ? DrawNormal(rank, module.in_features, 1.0, key)
                             : at::zeros({rank, module.in_features}, at::kFloat);
    pair.b = DrawNormal(module.out_features, rank, 1.0, key_b);
  } else if (absl::StartsWith(init, "pissa")) {
    RETURN_IF_ERROR(InitPissa(module, config, *weights, key, pair));
  } else if (init == "gaussian") {
    pair.a = DrawNormal(width, module.in_features, 1.0 / static_cast<double>(rank), key);
  } else if (init == "true" || init == "false") {
    pair.a = DrawUniform(width, module.in_features, 1.0 / std::sqrt(static_cast<double>(module.in_features)), key);
  } else {
    return absl::UnimplementedError(absl::StrCat("init_lora_weights: \"", init,
                                                 "\" is not supported; true, false, gaussian, pissa and "
                                                 "pissa_niter_<number> are"));
  }
  if (!pair.b.defined()) {
    pair.b = init == "false"
                 ? DrawUniform(module.out_features, width, 1.0 / std::sqrt(static_cast<double>(width)), key_b)
                 : at::zeros({module.out_features, width}, at::kFloat);
  }
  if (config.use_dora) {
    pair.magnitude = RowNorms(AdaptedWeight(FrozenWeight(*weights, module.name), pair, ScalingOf(config, module.name)))
                         .to(at::kCPU)
                         .contiguous();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoraAdapter> InitLora(const ModelConfig& model, const LoraConfig& config, uint64_t seed,
                                     const ModelWeights* weights) {
  if (config.r < 1 || config.r > kMaxLoraRank) {
    return absl::InvalidArgumentError(absl::StrCat("lora.r is ", config.r, "; it must lie in 1..", kMaxLoraRank));
  }
  LoraAdapter adapter;
  adapter.config = config;
  RETURN_IF_ERROR(ResolveTargets(model, adapter.config));
  const auto full = FullTensors(model, adapter.config);
  if (weights == nullptr && (config.use_dora || !full.empty() || absl::StartsWith(config.init_lora_weights, "pissa"))) {
    return absl::InvalidArgumentError("such an adapter begins with the model's weights, which are not given");
  }
  RETURN_IF_ERROR(CatchTorchErrors("initialise the adapter", [&]() -> absl::Status {
    for (const LoraModule& module : SelectedModules(model, adapter.config)) {
      RETURN_IF_ERROR(InitModule(module, adapter.config, weights, seed, adapter.modules[module.name]));
    }
    // From here on the frozen parts say it.
    if (absl::StartsWith(config.init_lora_weights, "pissa")) adapter.config.init_lora_weights = "true";
    for (const auto& [name, shape] : full) {
      const at::Tensor* tensor = TensorOf(*weights, name);
      // A quantised module that is to be trained whole begins with what it stands for.
      const at::Tensor start =
          tensor->defined() ? *tensor : FrozenWeight(*LinearOf(*weights, name.substr(0, name.rfind('.'))), at::kFloat);
      adapter.full[name] = start.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
    }
    return absl::OkStatus();
  }));
  return adapter;
}

absl::Status CompletePissa(const ModelWeights& weights, LoraAdapter& adapter) {
  if (adapter.config.init_lora_weights != "pissa") return absl::OkStatus();
  return CatchTorchErrors("find the base of a PiSSA adapter", [&]() -> absl::Status {
    for (auto& [name, pair] : adapter.modules) {
      if (adapter.replaced.contains(name + ".weight")) {
        return absl::UnimplementedError(
            absl::StrCat("init_lora_weights: pissa: the adapter brings the changed base of ", name,
                         " along; save it for the unchanged base (PEFT's path_initial_model_for_weight_conversion)"));
      }
      const at::Tensor* weight = WeightOf(weights, name);
      const int64_t rank = pair.a.size(0);
      if (weight != nullptr && !weight->defined()) return NotPissa(name);
      if (weight == nullptr || pair.b.size(0) != weight->size(0) || pair.a.size(1) != weight->size(1) ||
          rank > std::min(weight->size(0), weight->size(1))) {
        return absl::InvalidArgumentError(absl::StrCat("init_lora_weights: pissa does not fit ", name));
      }
      const LoraPair principal = PissaPair(*weight, rank, ScalingOf(adapter.config, name), std::nullopt, 0);
      pair.frozen_a = principal.a;
      pair.frozen_b = principal.b;
    }
    adapter.config.init_lora_weights = "true";
    return absl::OkStatus();
  });
}

}  // namespace retort
