#include "model/plain_source.h"

#include <ATen/ops/empty.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "model/fp8_blocks.h"
#include "model/quantized/bitsandbytes.h"
#include "model/torch_status.h"

namespace retort {
namespace {

constexpr char kFp8Scales[] = "_scale_inv";

// Some files give experts one tensor for a whole layer: gate and up [experts, 2 * intermediate, hidden], down [experts,
// hidden, intermediate]. Returns the slice that `name` asks for, undefined where there is no such tensor.
absl::StatusOr<at::Tensor> FromStackedExperts(TensorSource& source, const std::string& name) {
  const size_t at = name.find(".mlp.experts.");
  if (at == std::string::npos) return at::Tensor();
  const std::string prefix = name.substr(0, at + 13);
  const std::string rest = name.substr(at + 13);  // "<index>.gate_proj.weight"
  const int64_t index = std::atoll(rest.c_str());
  const bool down = absl::EndsWith(rest, ".down_proj.weight");
  const std::string stacked = prefix + (down ? "down_proj" : "gate_up_proj");
  if (!source.Has(stacked)) return at::Tensor();
  ASSIGN_OR_RETURN(const at::Tensor whole, source.Get(stacked));
  if (whole.dim() != 3 || index >= whole.size(0) || (!down && whole.size(1) % 2 != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", stacked, "\" has shape [",
                                                   absl::StrJoin(whole.sizes(), ", "), "], which holds no \"", name,
                                                   "\""));
  }
  const at::Tensor expert = whole.select(0, index);
  if (down) return expert;
  const int64_t inner = expert.size(0) / 2;
  return expert.narrow(0, absl::EndsWith(rest, ".up_proj.weight") ? inner : 0, inner);
}

class PlainSource final : public TensorSource {
 public:
  PlainSource(TensorSource& source, const ModelConfig& config, std::optional<c10::ScalarType> widened)
      : source_(source), config_(config), widened_(widened) {}

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (std::string& name : source_.Names()) {
      if (!IsPart(name)) names.push_back(std::move(name));
    }
    return names;
  }

  bool Has(const std::string& name) const override { return source_.Has(name) && !IsPart(name); }

  absl::StatusOr<at::Tensor> Get(const std::string& name) override {
    return CatchTorchErrors(name, [&] { return Read(name); });
  }

  absl::StatusOr<std::vector<int64_t>> ShapeOf(const std::string& name) override {
    if (config_.bitsandbytes) {
      ASSIGN_OR_RETURN(const std::optional<QuantizedMatrix> matrix, ReadQuantized(source_, name));
      if (matrix.has_value()) return std::vector<int64_t>{matrix->rows, matrix->columns};
    }
    if (source_.Has(name)) return source_.ShapeOf(name);
    ASSIGN_OR_RETURN(const at::Tensor tensor, Read(name));
    return tensor.sizes().vec();
  }

 private:
  bool IsPart(const std::string& name) const {
    if (config_.bitsandbytes && IsQuantizedPart(source_, name)) return true;
    return config_.block_fp8 && absl::EndsWith(name, kFp8Scales) &&
           source_.Has(std::string(absl::StripSuffix(name, kFp8Scales)));
  }

  absl::StatusOr<at::Tensor> Read(const std::string& name) {
    if (!source_.Has(name)) {
      ASSIGN_OR_RETURN(at::Tensor slice, FromStackedExperts(source_, name));
      if (slice.defined()) return slice;
    }
    if (config_.bitsandbytes) {
      ASSIGN_OR_RETURN(const std::optional<QuantizedMatrix> matrix, ReadQuantized(source_, name));
      if (matrix.has_value()) return Dequantise(*matrix, widened_.value_or(matrix->source_dtype));
    }
    ASSIGN_OR_RETURN(at::Tensor stored, source_.Get(name));
    if (config_.block_fp8 && stored.scalar_type() == c10::ScalarType::Float8_e4m3fn) {
      ASSIGN_OR_RETURN(const at::Tensor scales, source_.Get(name + kFp8Scales));
      return DequantiseBlockFp8(stored, scales, widened_.value_or(c10::ScalarType::Float));
    }
    return stored;
  }

  TensorSource& source_;
  const ModelConfig& config_;
  const std::optional<c10::ScalarType> widened_;
};

}  // namespace

std::unique_ptr<TensorSource> PlainTensors(TensorSource& source, const ModelConfig& config,
                                           std::optional<c10::ScalarType> widened) {
  return std::make_unique<PlainSource>(source, config, widened);
}

}  // namespace retort
