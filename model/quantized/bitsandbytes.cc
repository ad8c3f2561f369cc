#include "model/quantized/bitsandbytes.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/json.h"
#include "common/status.h"
#include "model/quantized/codebooks.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr absl::string_view kStatePrefix = ".quant_state.bitsandbytes__";
constexpr int64_t kMaxStateBytes = 1 << 16;
constexpr int64_t kMaxSide = int64_t{1} << 31;
constexpr int64_t kMaxBlock = 1 << 20;
// By how much a codebook may differ from its type's.
constexpr double kCodeTolerance = 1e-4;

constexpr std::pair<const char*, c10::ScalarType> kDtypes[] = {
    {"float32", c10::ScalarType::Float}, {"bfloat16", c10::ScalarType::BFloat16}, {"float16", c10::ScalarType::Half}};

bool IsFloat(const at::Tensor& tensor) { return c10::isFloatingType(tensor.scalar_type()); }

// "...q_proj.weight" -> "...q_proj.SCB".
std::string ScaleName(absl::string_view name) {
  absl::ConsumeSuffix(&name, ".weight");
  return absl::StrCat(name, ".SCB");
}

std::string Describe(const at::Tensor& tensor) {
  return absl::StrCat(c10::toString(tensor.scalar_type()), " [", absl::StrJoin(tensor.sizes(), ", "), "]");
}

// Reads the parts of one 4-bit matrix.
class Reader4Bit {
 public:
  Reader4Bit(TensorSource& source, std::string name, QuantType type)
      : source_(source), name_(std::move(name)), type_(type) {}

  absl::StatusOr<QuantizedMatrix> Read() {
    QuantizedMatrix matrix{.type = type_};
    ASSIGN_OR_RETURN(state_, State());
    RETURN_IF_ERROR(ReadState(matrix));
    ASSIGN_OR_RETURN(const at::Tensor packed, source_.Get(name_));
    RETURN_IF_ERROR(ReadCodes(packed, matrix));
    RETURN_IF_ERROR(CheckCodebook());
    RETURN_IF_ERROR(ReadScales(matrix));
    return matrix;
  }

 private:
  absl::Status Bad(absl::string_view part, absl::string_view why) const {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name_, part, "\" ", why));
  }
  std::string StatePart() const { return absl::StrCat(kStatePrefix, QuantTypeName(type_)); }

  absl::StatusOr<json> State() {
    ASSIGN_OR_RETURN(const at::Tensor bytes, source_.Get(name_ + StatePart()));
    if (bytes.scalar_type() != at::kByte || bytes.dim() != 1 || bytes.numel() > kMaxStateBytes) {
      return Bad(StatePart(),
                 absl::StrCat("is ", Describe(bytes), "; JSON in at most ", kMaxStateBytes, " bytes is expected"));
    }
    const absl::string_view text(reinterpret_cast<const char*>(bytes.const_data_ptr()),
                                 static_cast<size_t>(bytes.numel()));
    ASSIGN_OR_RETURN(json state, ParseJson(text, absl::StrCat("tensor \"", name_, StatePart(), "\"")));
    if (!state.is_object()) return Bad(StatePart(), "is not a JSON object");
    return state;
  }

  absl::StatusOr<int64_t> Integer(const json& value, absl::string_view key, int64_t largest) const {
    if (!value.is_number_integer() || value < 1 || value > largest) {
      return Bad(StatePart(), absl::StrCat("says ", key, " ", value.dump(), "; it must lie in 1..", largest));
    }
    return value.get<int64_t>();
  }

  absl::Status ReadState(QuantizedMatrix& matrix) {
    if (state_.value("quant_type", json()) != QuantTypeName(type_)) {
      return Bad(StatePart(), absl::StrCat("says quant_type ", state_.value("quant_type", json()).dump()));
    }
    const json shape = state_.value("shape", json());
    if (!shape.is_array() || shape.size() != 2) {
      return Bad(StatePart(), absl::StrCat("says shape ", shape.dump(), "; that of a matrix is expected"));
    }
    ASSIGN_OR_RETURN(matrix.rows, Integer(shape[0], "shape", kMaxSide));
    ASSIGN_OR_RETURN(matrix.columns, Integer(shape[1], "shape", kMaxSide));
    ASSIGN_OR_RETURN(matrix.block, Integer(state_.value("blocksize", json()), "blocksize", kMaxBlock));
    if (matrix.block % 2 != 0) return Bad(StatePart(), absl::StrCat("says blocksize ", matrix.block, ", which is odd"));
    const json dtype = state_.value("dtype", json());
    for (const auto& [name, type] : kDtypes) {
      if (dtype == name) {
        matrix.source_dtype = type;
        return absl::OkStatus();
      }
    }
    return Bad(StatePart(), absl::StrCat("says dtype ", dtype.dump(), "; float32, bfloat16 or float16 is expected"));
  }

  // Any storage dtype will do: the bytes are what counts (bnb_4bit_quant_storage).
  absl::Status ReadCodes(const at::Tensor& packed, QuantizedMatrix& matrix) const {
    const auto wanted = static_cast<size_t>((matrix.numel() + 1) / 2);
    const size_t padding = packed.element_size() - 1;
    if (packed.nbytes() < wanted || packed.nbytes() > wanted + padding) {
      return Bad("", absl::StrCat("holds ", packed.nbytes(), " bytes; shape [", matrix.rows, ", ", matrix.columns,
                                  "] of its quant_state takes ", wanted));
    }
    const at::Tensor flat = packed.contiguous().view({-1});
    matrix.codes =
        (flat.scalar_type() == at::kByte ? flat : flat.view(at::kByte)).narrow(0, 0, static_cast<int64_t>(wanted));
    return absl::OkStatus();
  }

  absl::Status CheckCodebook() {
    constexpr char kPart[] = ".quant_map";
    ASSIGN_OR_RETURN(const at::Tensor map, source_.Get(absl::StrCat(name_, kPart)));
    if (!IsFloat(map) || map.numel() != 16) {
      return Bad(kPart, absl::StrCat("is ", Describe(map), "; a 4-bit type has 16 values"));
    }
    // bitsandbytes computes with the type's own values whatever stands here.
    const at::Tensor plain = map.to(at::kFloat).contiguous();
    const float* values = plain.const_data_ptr<float>();
    const std::array<float, 16>& codes = CodesOf(type_);
    for (size_t i = 0; i < codes.size(); ++i) {
      if (!(std::fabs(values[i] - codes[i]) <= kCodeTolerance)) {
        return Bad(kPart, absl::StrCat("gives ", values[i], " for code ", i, "; in ", QuantTypeName(type_), " it is ",
                                       codes[i]));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadScales(QuantizedMatrix& matrix) {
    constexpr char kPart[] = ".absmax";
    ASSIGN_OR_RETURN(const at::Tensor scales, source_.Get(absl::StrCat(name_, kPart)));
    if (scales.numel() != matrix.blocks()) {
      return Bad(kPart, absl::StrCat("is ", Describe(scales), "; ", matrix.blocks(), " blocks of ", matrix.block,
                                     " values want one scale each"));
    }
    const bool nested = source_.Has(absl::StrCat(name_, ".nested_absmax"));
    if (nested) {
      if (scales.scalar_type() != at::kByte)
        return Bad(kPart, absl::StrCat("is ", Describe(scales), "; beside nested_absmax it must hold bytes"));
      matrix.scales = scales.contiguous().view({-1});
      return ReadNested(matrix);
    }
    if (!IsFloat(scales)) {
      return Bad(kPart,
                 absl::StrCat("is ", Describe(scales), "; without nested_absmax it must hold floating-point values"));
    }
    matrix.scales = scales.to(at::kFloat).contiguous().view({-1});
    return absl::OkStatus();
  }

  absl::Status ReadNested(QuantizedMatrix& matrix) {
    NestedScales& nested = matrix.nested;
    ASSIGN_OR_RETURN(nested.block, Integer(state_.value("nested_blocksize", json()), "nested_blocksize", kMaxBlock));
    if (state_.value("nested_dtype", json()) != "float32") {
      return Bad(StatePart(), absl::StrCat("says nested_dtype ", state_.value("nested_dtype", json()).dump(),
                                           "; only float32 is supported"));
    }
    const json offset = state_.value("nested_offset", json());
    if (!offset.is_number() || !std::isfinite(static_cast<float>(offset.get<double>()))) {
      return Bad(StatePart(), absl::StrCat("says nested_offset ", offset.dump(), "; a number is expected"));
    }
    nested.offset = static_cast<float>(offset.get<double>());
    const int64_t blocks = (matrix.blocks() + nested.block - 1) / nested.block;
    ASSIGN_OR_RETURN(nested.scales, Floats(".nested_absmax", blocks));
    ASSIGN_OR_RETURN(nested.codebook, Floats(".nested_quant_map", 256));
    return absl::OkStatus();
  }

  absl::StatusOr<at::Tensor> Floats(absl::string_view part, int64_t count) {
    ASSIGN_OR_RETURN(const at::Tensor tensor, source_.Get(absl::StrCat(name_, part)));
    if (!IsFloat(tensor) || tensor.numel() != count) {
      return Bad(part, absl::StrCat("is ", Describe(tensor), "; ", count, " floating-point values are expected"));
    }
    return tensor.to(at::kFloat).contiguous().view({-1});
  }

  TensorSource& source_;
  const std::string name_;
  const QuantType type_;
  json state_;
};

absl::StatusOr<QuantizedMatrix> ReadInt8(TensorSource& source, const std::string& name, const at::Tensor& codes) {
  if (codes.dim() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", name, "\" is ", Describe(codes), "; a matrix is expected"));
  }
  QuantizedMatrix matrix{
      .type = QuantType::kInt8, .rows = codes.size(0), .columns = codes.size(1), .codes = codes.contiguous()};
  ASSIGN_OR_RETURN(const at::Tensor scales, source.Get(ScaleName(name)));
  if (!IsFloat(scales) || scales.numel() != matrix.rows) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", ScaleName(name), "\" is ", Describe(scales), "; ",
                                                   matrix.rows, " rows want one scale each"));
  }
  matrix.scales = scales.to(at::kFloat).contiguous().view({-1});
  return matrix;
}

// As Python's json writes it.
std::string StateOf(const QuantizedMatrix& matrix) {
  const char* dtype = "float32";
  for (const auto& [name, type] : kDtypes) {
    if (type == matrix.source_dtype) dtype = name;
  }
  std::string text =
      absl::StrCat("{\"quant_type\": \"", QuantTypeName(matrix.type), "\", \"blocksize\": ", matrix.block,
                   ", \"dtype\": \"", dtype, "\", \"shape\": [", matrix.rows, ", ", matrix.columns, "]");
  if (matrix.double_quant()) {
    absl::StrAppend(
        &text, ", \"nested_blocksize\": ", matrix.nested.block,
        ", \"nested_dtype\": \"float32\", \"nested_offset\": ", json(static_cast<double>(matrix.nested.offset)).dump());
  }
  return text + "}";
}

}  // namespace

absl::StatusOr<std::optional<QuantizedMatrix>> ReadQuantized(TensorSource& source, const std::string& name) {
  for (const QuantType type : {QuantType::kNf4, QuantType::kFp4}) {
    if (!source.Has(absl::StrCat(name, kStatePrefix, QuantTypeName(type)))) continue;
    ASSIGN_OR_RETURN(QuantizedMatrix matrix, Reader4Bit(source, name, type).Read());
    return matrix;
  }
  if (!absl::EndsWith(name, ".weight") || !source.Has(name)) return std::nullopt;
  ASSIGN_OR_RETURN(const at::Tensor stored, source.Get(name));
  if (stored.scalar_type() == at::kByte) {
    return absl::NotFoundError(absl::StrCat("tensor \"", name, "\" holds packed codes, but \"", name, kStatePrefix,
                                            "nf4\" (or fp4), which says what they are, is missing"));
  }
  if (stored.scalar_type() != at::kChar) return std::nullopt;
  ASSIGN_OR_RETURN(QuantizedMatrix matrix, ReadInt8(source, name, stored));
  return matrix;
}

bool IsQuantizedPart(const TensorSource& source, absl::string_view name) {
  const auto has = [&](absl::string_view weight) { return source.Has(std::string(weight)); };
  for (const absl::string_view part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    if (absl::EndsWith(name, part)) return has(absl::StripSuffix(name, part));
  }
  if (const size_t at = name.find(kStatePrefix); at != absl::string_view::npos) return has(name.substr(0, at));
  for (const absl::string_view part : {".SCB", ".weight_format"}) {
    if (absl::EndsWith(name, part)) return has(absl::StrCat(absl::StripSuffix(name, part), ".weight"));
  }
  return false;
}

std::vector<std::pair<std::string, at::Tensor>> QuantizedParts(const QuantizedMatrix& matrix, const std::string& name) {
  std::vector<std::pair<std::string, at::Tensor>> parts;
  if (matrix.type == QuantType::kInt8) {
    parts.emplace_back(name, matrix.codes);
    parts.emplace_back(ScaleName(name), matrix.scales);
    // 0: row by row.
    const std::string format = absl::StrCat(absl::StripSuffix(name, ".weight"), ".weight_format");
    parts.emplace_back(format, at::zeros({}, at::kByte));
    return parts;
  }
  parts.emplace_back(name, matrix.codes.view({-1, 1}));
  parts.emplace_back(name + ".absmax", matrix.scales);
  if (matrix.double_quant()) {
    parts.emplace_back(name + ".nested_absmax", matrix.nested.scales);
    parts.emplace_back(name + ".nested_quant_map", matrix.nested.codebook);
  }
  std::array<float, 16> codes = CodesOf(matrix.type);
  for (float& code : codes) code += 0.0f;  // no negative zero
  parts.emplace_back(name + ".quant_map", at::tensor(at::ArrayRef<float>(codes.data(), codes.size())));
  const std::string state = StateOf(matrix);
  at::Tensor bytes = at::empty({static_cast<int64_t>(state.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), state.data(), state.size());
  parts.emplace_back(absl::StrCat(name, kStatePrefix, QuantTypeName(matrix.type)), bytes);
  return parts;
}

}  // namespace retort
