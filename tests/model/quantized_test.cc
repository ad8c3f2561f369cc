// Matrices in 4 and 8 bits against bitsandbytes, and models that it quantised against transformers and PEFT
// (tests/golden/make_quantized_golden.py).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "model/generation/scoring.h"
#include "model/lora.h"
#include "model/lora_weights.h"
#include "model/quantized/bitsandbytes.h"
#include "model/quantized/quantise.h"
#include "model/safetensors.h"
#include "model/training_model.h"
#include "model/weights.h"

namespace retort {
namespace {

using nlohmann::json;

std::string Root() { return absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/tests/golden/quantized"); }

// Tensors by name, some of which a test replaces.
class FakeSource final : public TensorSource {
 public:
  explicit FakeSource(std::map<std::string, at::Tensor> tensors) : tensors_(std::move(tensors)) {}
  static FakeSource Matrices() {
    const SafetensorsFile file = SafetensorsFile::Open(Root() + "/matrices.safetensors").value();
    std::map<std::string, at::Tensor> tensors;
    for (const std::string& name : file.names()) tensors[name] = file.Get(name).value();
    return FakeSource(std::move(tensors));
  }

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  bool Has(const std::string& name) const override { return tensors_.contains(name); }
  absl::StatusOr<at::Tensor> Get(const std::string& name) override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return absl::NotFoundError(absl::StrCat("no tensor \"", name, "\""));
    return found->second;
  }
  std::map<std::string, at::Tensor>& tensors() { return tensors_; }

 private:
  std::map<std::string, at::Tensor> tensors_;
};

at::Tensor Bytes(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

std::string TextOf(const at::Tensor& bytes) {
  return {static_cast<const char*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel())};
}

bool SameBytes(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0;
}

struct MatrixCase {
  const char* name;
  QuantiseOptions options;
};

class QuantizedMatrixTest : public ::testing::TestWithParam<MatrixCase> {
 protected:
  FakeSource source_ = FakeSource::Matrices();
  const std::string name_ = GetParam().name;
  const std::string weight_ = name_ + ".weight";
};

TEST_P(QuantizedMatrixTest, DequantisesToBitsandbytesBits) {
  const auto matrix = ReadQuantized(source_, weight_);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  ASSERT_TRUE(matrix->has_value());
  // All bits but the sign of FP4's second zero, which bitsandbytes gives only where a row's length is even.
  EXPECT_TRUE(at::equal(Dequantise(**matrix, at::kFloat), source_.Get(name_ + ".float32").value()));
  EXPECT_TRUE(at::equal(Dequantise(**matrix, at::kBFloat16), source_.Get(name_ + ".bfloat16").value()));
}

TEST_P(QuantizedMatrixTest, QuantisesToBitsandbytesBytes) {
  const auto matrix = Quantise(source_.Get(name_ + ".source").value(), GetParam().options);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  size_t parts = 0;
  for (const auto& [name, tensor] : QuantizedParts(*matrix, weight_)) {
    ASSERT_TRUE(source_.Has(name)) << name;
    const at::Tensor wanted = source_.Get(name).value();
    EXPECT_TRUE(SameBytes(tensor, wanted)) << name;
    if (name.find("quant_state") != std::string::npos) {
      EXPECT_EQ(TextOf(tensor), TextOf(wanted));
    }
    ++parts;
  }
  for (const std::string& name : source_.Names()) {
    if (name == weight_ || (name.starts_with(name_ + ".") && IsQuantizedPart(source_, name))) --parts;
  }
  EXPECT_EQ(parts, 0U);
}

INSTANTIATE_TEST_SUITE_P(Matrices, QuantizedMatrixTest,
                         ::testing::Values(MatrixCase{"nf4", {}}, MatrixCase{"nf4_odd", {}},
                                           MatrixCase{"nf4_plain", {.double_quant = false}},
                                           MatrixCase{"nf4_f16", {.double_quant = false, .block = 32}},
                                           MatrixCase{"nf4_blocks", {}},
                                           MatrixCase{"fp4", {.type = QuantType::kFp4, .block = 128}},
                                           MatrixCase{"fp4_plain", {.type = QuantType::kFp4, .double_quant = false}},
                                           MatrixCase{"int8", {.type = QuantType::kInt8}},
                                           MatrixCase{"int8_f32", {.type = QuantType::kInt8}}),
                         [](const auto& info) { return info.param.name; });

TEST(QuantiseTest, RefusesWhatIsNotFinite) {
  at::Tensor weight = at::ones({4, 48});
  weight[3][47] = std::nanf("");
  EXPECT_FALSE(Quantise(weight, {}).ok());
  EXPECT_FALSE(Quantise(weight, {.type = QuantType::kInt8}).ok());
  weight[3][47] = 70000.0F;
  EXPECT_TRUE(Quantise(weight, {}).ok());
  EXPECT_FALSE(Quantise(weight, {.type = QuantType::kInt8}).ok());  // beyond float16
}

TEST(QuantizedPartsTest, AnyStorageDtypeHoldsTheBytes) {
  FakeSource source = FakeSource::Matrices();
  const at::Tensor wanted = Dequantise(**ReadQuantized(source, "nf4.weight"), at::kFloat);
  at::Tensor& stored = source.tensors()["nf4.weight"];
  stored = stored.contiguous().view({-1}).view(at::kBFloat16).unsqueeze(1);
  const auto matrix = ReadQuantized(source, "nf4.weight");
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_TRUE(SameBytes(Dequantise(**matrix, at::kFloat), wanted));
}

TEST(QuantizedPartsTest, WhatIsNotQuantisedIsNoMatrix) {
  FakeSource source = FakeSource::Matrices();
  EXPECT_FALSE(ReadQuantized(source, "nf4.source").value().has_value());
  EXPECT_FALSE(ReadQuantized(source, "absent.weight").value().has_value());
  source.tensors()["plain.weight"] = at::ones({2, 2});
  EXPECT_FALSE(ReadQuantized(source, "plain.weight").value().has_value());
  EXPECT_FALSE(IsQuantizedPart(source, "plain.weight"));
  EXPECT_FALSE(IsQuantizedPart(source, "absent.weight.absmax"));
  EXPECT_TRUE(IsQuantizedPart(source, "nf4.weight.quant_state.bitsandbytes__nf4"));
}

// What is changed in the parts of "nf4" ([24, 40], 15 blocks) or "int8", and a word of the error.
struct LyingCase {
  const char* name;
  std::function<void(std::map<std::string, at::Tensor>&)> lie;
  const char* says;
};

std::function<void(std::map<std::string, at::Tensor>&)> State(const std::string& key, const json& value) {
  return [key, value](std::map<std::string, at::Tensor>& tensors) {
    at::Tensor& state = tensors["nf4.weight.quant_state.bitsandbytes__nf4"];
    json object = json::parse(TextOf(state));
    if (value.is_discarded()) {
      object.erase(key);
    } else {
      object[key] = value;
    }
    state = Bytes(object.dump());
  };
}

std::function<void(std::map<std::string, at::Tensor>&)> Put(const std::string& name, const at::Tensor& tensor) {
  return [name, tensor](std::map<std::string, at::Tensor>& tensors) {
    tensors.erase(name);
    if (tensor.defined()) tensors[name] = tensor;
  };
}

std::vector<LyingCase> Lies() {
  const std::string part = "nf4.weight.";
  const std::string state = part + "quant_state.bitsandbytes__nf4";
  const json gone = json::value_t::discarded;
  return {
      {"block_of_zero", State("blocksize", 0), "blocksize 0"},
      {"block_below_zero", State("blocksize", -64), "blocksize -64"},
      {"block_beyond_bounds", State("blocksize", int64_t{1} << 40), "blocksize"},
      {"block_odd", State("blocksize", 63), "odd"},
      {"block_no_number", State("blocksize", "64"), "blocksize"},
      {"block_other", State("blocksize", 128), "absmax"},
      {"shape_other", State("shape", {24, 42}), "holds 480 bytes"},
      {"shape_overflowing", State("shape", {int64_t{1} << 31, int64_t{1} << 31}), "holds 480 bytes"},
      {"shape_beyond_bounds", State("shape", {int64_t{1} << 40, 1}), "shape"},
      {"shape_negative", State("shape", {-24, -40}), "shape"},
      {"shape_of_three", State("shape", {2, 12, 40}), "shape"},
      {"shape_absent", State("shape", gone), "shape"},
      {"dtype_unknown", State("dtype", "int32"), "dtype"},
      {"type_other", State("quant_type", "fp4"), "quant_type"},
      {"offset_absent", State("nested_offset", gone), "nested_offset"},
      {"offset_no_number", State("nested_offset", "0.5"), "nested_offset"},
      {"offset_infinite", State("nested_offset", 1e300), "nested_offset"},
      {"nested_block_of_zero", State("nested_blocksize", 0), "nested_blocksize"},
      {"nested_block_other", State("nested_blocksize", 8), "nested_absmax"},
      {"nested_dtype_other", State("nested_dtype", "bfloat16"), "nested_dtype"},
      {"state_no_json", Put(state, Bytes("{\"quant_type\": nf4")), "quant_state"},
      {"state_no_object", Put(state, Bytes("[1, 2]")), "not a JSON object"},
      {"state_empty", Put(state, at::empty({0}, at::kByte)), "quant_state"},
      {"state_of_floats", Put(state, at::ones({8})), "JSON"},
      {"state_huge", Put(state, at::full({1 << 20}, ' ', at::kByte)), "JSON"},
      {"state_absent", Put(state, at::Tensor()), "quant_state"},
      {"map_absent", Put(part + "quant_map", at::Tensor()), "quant_map"},
      {"map_short", Put(part + "quant_map", at::ones({15})), "16 values"},
      {"map_other", Put(part + "quant_map", at::ones({16})), "for code 0"},
      {"map_nan", Put(part + "quant_map", at::full({16}, std::nan(""))), "for code 0"},
      {"scales_short", Put(part + "absmax", at::ones({14}, at::kByte)), "15 blocks"},
      {"scales_absent", Put(part + "absmax", at::Tensor()), "absmax"},
      {"scales_of_floats_beside_nested", Put(part + "absmax", at::ones({15})), "bytes"},
      {"scales_of_bytes_alone", Put(part + "nested_absmax", at::Tensor()), "floating-point"},
      {"nested_scales_long", Put(part + "nested_absmax", at::ones({2})), "nested_absmax"},
      {"nested_map_short", Put(part + "nested_quant_map", at::ones({255})), "nested_quant_map"},
      {"nested_map_of_bytes", Put(part + "nested_quant_map", at::ones({256}, at::kByte)), "nested_quant_map"},
      {"codes_short", Put("nf4.weight", at::ones({479, 1}, at::kByte)), "holds 479 bytes"},
      {"codes_long", Put("nf4.weight", at::ones({481, 1}, at::kByte)), "holds 481 bytes"},
      {"codes_empty", Put("nf4.weight", at::empty({0, 1}, at::kByte)), "holds 0 bytes"},
      {"codes_absent", Put("nf4.weight", at::Tensor()), "nf4.weight"},
      {"int8_scales_short", Put("int8.SCB", at::ones({8})), "9 rows"},
      {"int8_scales_absent", Put("int8.SCB", at::Tensor()), "SCB"},
      {"int8_scales_of_bytes", Put("int8.SCB", at::ones({9}, at::kByte)), "9 rows"},
      {"int8_no_matrix", Put("int8.weight", at::ones({9}, at::kChar)), "a matrix"},
  };
}

TEST(QuantizedPartsTest, LiesAreErrors) {
  for (const LyingCase& lying : Lies()) {
    FakeSource source = FakeSource::Matrices();
    lying.lie(source.tensors());
    const auto matrix =
        ReadQuantized(source, std::string(lying.name).starts_with("int8") ? "int8.weight" : "nf4.weight");
    ASSERT_FALSE(matrix.ok()) << lying.name;
    EXPECT_NE(std::string(matrix.status().message()).find(lying.says), std::string::npos)
        << lying.name << ": " << matrix.status();
  }
}

class QuantizedModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);  // matrices this small gain nothing by more
    folder_ = absl::StrCat(Root(), "/", GetParam());
    expected_ = ReadJsonFile(folder_ + "/expected.json").value();
    source_ = absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/tests/golden/families/",
                           expected_["source"].get<std::string>());
  }

  void CheckScores(ModelWeights weights) const {
    auto scorer = Scorer::Create(std::move(weights), at::kFloat);
    ASSERT_TRUE(scorer.ok()) << scorer.status();
    std::vector<std::vector<int32_t>> sequences;
    for (const json& one : expected_["sequences"]) sequences.push_back(one["token_ids"]);
    const auto scores = (*scorer)->Score(sequences);
    ASSERT_TRUE(scores.ok()) << scores.status();
    for (size_t i = 0; i < scores->size(); ++i) {
      const json& wanted = expected_["sequences"][i]["logprobs"];
      for (size_t t = 1; t < wanted.size(); ++t) {
        ASSERT_NEAR((*scores)[i][t], wanted[t].get<double>(), 2e-4) << "token " << t << " of sequence " << i;
      }
    }
  }

  std::string folder_, source_;
  json expected_;
};

TEST_P(QuantizedModelTest, WidenedScoresAsTransformers) {
  const auto weights = LoadWeights(folder_, at::kFloat, at::kCPU);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_FALSE(HasQuantized(*weights));
  CheckScores(*weights);
}

TEST_P(QuantizedModelTest, KeptScoresAsTransformers) {
  // What the folder has in full is not quantised.
  const auto weights = LoadWeights(folder_, at::kFloat, at::kCPU, {.keep_stored = true, .quantise = QuantiseOptions{}});
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_TRUE(HasQuantized(*weights));
  for (const LayerWeights& layer : weights->layers) {
    for (const Linear& linear : layer.linears) EXPECT_FALSE(linear.quantized != nullptr && linear.weight.defined());
  }
  CheckScores(*weights);
}

TEST_P(QuantizedModelTest, QuantisedAtLoadAsTransformersDoes) {
  const ModelWeights stored = LoadWeights(folder_, at::kFloat, at::kCPU, {.keep_stored = true}).value();
  QuantiseOptions options;
  for (const LayerWeights& layer : stored.layers) {
    for (const Linear& linear : layer.linears) {
      if (linear.quantized == nullptr) continue;
      options = {.type = linear.quantized->type, .double_quant = linear.quantized->double_quant()};
    }
  }
  const auto made = LoadWeights(source_, at::kFloat, at::kCPU, {.quantise = options});
  ASSERT_TRUE(made.ok()) << made.status();
  for (size_t i = 0; i < stored.layers.size(); ++i) {
    for (size_t p = 0; p < kProjections; ++p) {
      const SharedQuantizedMatrix& wanted = stored.layers[i].linears[p].quantized;
      const SharedQuantizedMatrix& own = made->layers[i].linears[p].quantized;
      if (wanted == nullptr) continue;  // none, or one that llm_int8_skip_modules names
      ASSERT_NE(own, nullptr);
      EXPECT_TRUE(SameBytes(own->codes, wanted->codes)) << ProjectionName(static_cast<Projection>(p));
      EXPECT_TRUE(SameBytes(own->scales, wanted->scales)) << ProjectionName(static_cast<Projection>(p));
      EXPECT_EQ(own->nested.offset, wanted->nested.offset);
    }
  }
}

TEST_P(QuantizedModelTest, TwentyStepsAsPeft) {
  auto weights = LoadWeights(folder_, at::kFloat, at::kCPU, {.keep_stored = true});
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto adapter = LoadAdapter(folder_ + "/adapter", weights->config);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  auto model = TrainingModel::Create(*std::move(weights), *adapter, {});
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<json> rows;
  ASSERT_TRUE(ForEachJsonLine(folder_ + "/rows.jsonl", [&](int64_t, absl::string_view, const json& row) {
                rows.push_back(row);
                return absl::OkStatus();
              }).ok());
  const double rate = expected_["training"]["learning_rate"];
  const double decay = expected_["training"]["weight_decay"];
  at::Tensor& parameters = (*model)->flat_parameters();
  at::Tensor gradient = at::empty_like(parameters);
  at::Tensor mean = at::zeros_like(parameters);
  at::Tensor square = at::zeros_like(parameters);
  const json& losses = expected_["losses"];
  ASSERT_EQ(rows.size(), 2 * losses.size());
  for (size_t step = 0; step < losses.size(); ++step) {
    MicroBatch batch{.sequence_offsets = {0}};
    for (const json& row : {rows[2 * step], rows[2 * step + 1]}) {
      for (const int32_t id : row.at("input_ids")) batch.input_ids.push_back(id);
      for (const int32_t label : row.at("labels")) batch.labels.push_back(label);
      batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
    }
    const auto trained = static_cast<double>((*model)->Loss(batch).value().trained_tokens);
    const auto sum = (*model)->ForwardBackward(batch, 1.0 / trained, step, gradient);
    ASSERT_TRUE(sum.ok()) << sum.status();
    const double wanted = losses[step];
    EXPECT_NEAR(sum->loss / trained, wanted, 1e-4 * wanted) << "step " << step;
    const double t = static_cast<double>(step) + 1.0;
    parameters.mul_(1.0 - rate * decay);
    mean.mul_(0.9).add_(gradient, 0.1);
    square.mul_(0.999).addcmul_(gradient, gradient, 0.001);
    const at::Tensor root = (square / (1.0 - std::pow(0.999, t))).sqrt_().add_(1e-8);
    parameters.addcdiv_(mean, root, -rate / (1.0 - std::pow(0.9, t)));
  }
}

TEST_P(QuantizedModelTest, MergesIntoTheWidenedBase) {
  ModelWeights wide = LoadWeights(folder_, at::kFloat, at::kCPU).value();
  const LoraAdapter adapter = LoadAdapter(folder_ + "/adapter", wide.config).value();
  ASSERT_TRUE(MergeAdapter(adapter, wide).ok());
  ModelWeights kept = LoadWeights(folder_, at::kFloat, at::kCPU, {.keep_stored = true}).value();
  const absl::Status refused = MergeAdapter(adapter, kept);
  EXPECT_NE(std::string(refused.message()).find("quantised"), std::string::npos) << refused;
}

INSTANTIATE_TEST_SUITE_P(Models, QuantizedModelTest,
                         ::testing::Values("llama_nf4", "phi3_fp4", "qwen2_int8", "deepseek_nf4"),
                         [](const auto& info) { return info.param; });

TEST(QuantizedAdapterTest, PissaWantsAFullBase) {
  const ModelWeights kept = LoadWeights(Root() + "/llama_nf4", at::kFloat, at::kCPU, {.keep_stored = true}).value();
  const auto adapter =
      InitLora(kept.config, {.r = 2, .target_modules = {"q_proj"}, .init_lora_weights = "pissa"}, 1, &kept);
  ASSERT_FALSE(adapter.ok());
  EXPECT_NE(std::string(adapter.status().message()).find("pissa"), std::string::npos);
}

TEST(QuantizedAdapterTest, DoraBeginsWithTheNormsOfWhatTheWeightStandsFor) {
  const ModelWeights kept = LoadWeights(Root() + "/llama_nf4", at::kFloat, at::kCPU, {.keep_stored = true}).value();
  const auto adapter = InitLora(kept.config, {.r = 2, .target_modules = {"q_proj"}, .use_dora = true}, 1, &kept);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  for (const auto& [name, pair] : adapter->modules) {
    EXPECT_TRUE(at::allclose(pair.magnitude, RowNorms(FrozenWeight(*LinearOf(kept, name), at::kFloat)))) << name;
  }
}

TEST(QuantizedAdapterTest, AQuantisedModuleMayBeTrainedWhole) {
  ModelWeights kept = LoadWeights(Root() + "/llama_nf4", at::kFloat, at::kCPU, {.keep_stored = true}).value();
  const LoraConfig config{.r = 2, .target_modules = {"q_proj"}, .modules_to_save = {"v_proj"}};
  const auto adapter = InitLora(kept.config, config, 1, &kept);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  auto model = TrainingModel::Create(kept, *adapter, {});
  ASSERT_TRUE(model.ok()) << model.status();
  at::Tensor gradient = at::empty_like((*model)->flat_parameters());
  const MicroBatch batch{.input_ids = {3, 4, 5, 6}, .labels = {3, 4, 5, 6}, .sequence_offsets = {0, 4}};
  ASSERT_TRUE((*model)->ForwardBackward(batch, 1.0, 0, gradient).ok());
  for (const ParameterSlice& slice : (*model)->parameters()) {
    if (slice.name.find("v_proj") == std::string::npos) continue;
    EXPECT_GT(gradient.narrow(0, slice.offset, slice.numel).abs().max().item<float>(), 0.0F) << slice.name;
  }
}

}  // namespace
}  // namespace retort
