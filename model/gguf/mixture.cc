#include "model/gguf/mixture.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/check.h"

namespace retort::gguf {
namespace {

bool IsQuantised(const std::string& name, const std::vector<int64_t>& shape) {
  return shape.size() >= 2 && absl::EndsWith(name, ".weight") && !absl::EndsWith(name, "_norm.weight") &&
         !absl::StrContains(name, "ffn_gate_inp.weight");
}

// Of "blk.<layer>.<rest>"; -1 for all else.
int64_t LayerOf(const std::string& name) {
  int64_t layer = -1;
  const std::vector<std::string> parts = absl::StrSplit(name, absl::MaxSplits('.', 2));
  if (parts.size() < 3 || parts[0] != "blk" || !absl::SimpleAtoi(parts[1], &layer)) return -1;
  return layer;
}

// The first and last eighth of the layers, and every third between.
bool UsesMoreBits(int64_t layer, int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

TensorType Q4_K_M(absl::string_view architecture, const Geometry& geometry, const std::string& name, int64_t columns) {
  const int64_t layer = LayerOf(name);
  const bool eight_experts = geometry.experts == 8;
  if (name == "output.weight" || (geometry.tied && name == "token_embd.weight")) {
    return columns % InfoOf(TensorType::kQ4_K).block_elements != 0 ? TensorType::kQ8_0 : TensorType::kQ6_K;
  }
  if (absl::StrContains(name, "attn_v.weight") || absl::StrContains(name, "attn_qkv.weight") ||
      absl::StrContains(name, "attn_kv_b.weight")) {
    if (eight_experts) return TensorType::kQ8_0;
    if (UsesMoreBits(layer, geometry.layers)) return TensorType::kQ6_K;
    // Of a 70B model, whose values are shared by eight heads: small, and worth more.
    const bool is_70b = geometry.layers == 80 &&
                        (architecture == "qwen2" || (architecture == "llama" && geometry.heads != geometry.kv_heads));
    return is_70b ? TensorType::kQ5_K : TensorType::kQ4_K;
  }
  if (absl::StrContains(name, "attn_k.weight")) return eight_experts ? TensorType::kQ8_0 : TensorType::kQ4_K;
  if (absl::StrContains(name, "attn_output.weight")) return eight_experts ? TensorType::kQ5_K : TensorType::kQ4_K;
  if (absl::StrContains(name, "ffn_down") && UsesMoreBits(layer, geometry.layers)) return TensorType::kQ6_K;
  return TensorType::kQ4_K;
}

TensorType WithSmallerBlock(TensorType type, int64_t columns) {
  if (columns % InfoOf(type).block_elements == 0) return type;
  TensorType other = TensorType::kF16;
  if (type == TensorType::kQ4_K) other = TensorType::kQ5_0;
  if (type == TensorType::kQ5_K) other = TensorType::kQ5_1;
  if (type == TensorType::kQ6_K) other = TensorType::kQ8_0;
  return columns % InfoOf(other).block_elements == 0 ? other : TensorType::kF16;
}

}  // namespace

TensorType ChooseType(FileType file_type, absl::string_view architecture, const Geometry& geometry,
                      const std::string& name, const std::vector<int64_t>& shape) {
  if (!IsQuantised(name, shape)) return TensorType::kF32;
  switch (file_type) {
    case FileType::kF32:
      return TensorType::kF32;
    case FileType::kF16:
      return TensorType::kF16;
    case FileType::kBF16:
      return TensorType::kBF16;
    case FileType::kQ8_0:
      return WithSmallerBlock(TensorType::kQ8_0, shape.back());
    case FileType::kQ4_K_M:
      return WithSmallerBlock(Q4_K_M(architecture, geometry, name, shape.back()), shape.back());
  }
  RETORT_CHECK(false);
}

}  // namespace retort::gguf
