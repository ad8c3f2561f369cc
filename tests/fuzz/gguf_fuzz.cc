// GGUF: the header, every kind of access to metadata, config, tokenizer and tensors.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/gguf/config.h"
#include "model/gguf/file.h"
#include "model/gguf/quants.h"
#include "model/gguf/vocab.h"
#include "tests/fuzz/driver.h"
#include "tests/model/gguf/file_builder.h"

namespace retort {
namespace {

using gguf::FileBuilder;
using gguf::Raw;
using gguf::RawString;
using gguf::ValueType;

std::string Texts(const std::vector<std::string>& texts) {
  std::string bytes;
  for (const std::string& text : texts) bytes += RawString(text);
  return bytes;
}

// A model of one layer, as small as its family allows.
std::string Model(const std::string& architecture, const std::string& tokenizer) {
  FileBuilder file;
  file.String("general.architecture", architecture);
  const auto number = [&](const std::string& key, uint32_t value) { file.Uint32(architecture + "." + key, value); };
  number("block_count", 1);
  number("context_length", 64);
  number("embedding_length", 32);
  number("feed_forward_length", 32);
  number("attention.head_count", 4);
  number("attention.head_count_kv", 2);
  number("rope.dimension_count", 8);
  file.Key(architecture + ".attention.layer_norm_rms_epsilon", ValueType::kFloat32, Raw(1e-5F));
  file.Key(architecture + ".rope.freq_base", ValueType::kFloat32, Raw(1e4F));
  if (architecture == "deepseek2") {
    number("attention.key_length", 16);
    number("attention.value_length", 8);
    number("attention.kv_lora_rank", 8);
    number("expert_count", 2);
    number("expert_used_count", 1);
    number("expert_feed_forward_length", 32);
    number("leading_dense_block_count", 0);
    file.String(architecture + ".rope.scaling.type", "yarn");
    file.Key(architecture + ".rope.scaling.factor", ValueType::kFloat32, Raw(4.0F));
    number("rope.scaling.original_context_length", 16);
  }
  const std::vector<std::string> tokens = {"a", "b", "ab", "<s>", "</s>", "<unk>", "\u2581", "<0x0A>"};
  std::string types;
  std::string scores;
  for (const int type : {1, 1, 1, 3, 3, 2, 1, 6}) types += Raw<int32_t>(type);
  for (size_t i = 0; i < tokens.size(); ++i) scores += Raw(-static_cast<float>(i));
  file.String("tokenizer.ggml.model", tokenizer).String("tokenizer.ggml.pre", "llama-bpe");
  file.Array("tokenizer.ggml.tokens", ValueType::kString, tokens.size(), Texts(tokens));
  file.Array("tokenizer.ggml.token_type", ValueType::kInt32, tokens.size(), types);
  if (tokenizer == "gpt2") {
    file.Array("tokenizer.ggml.merges", ValueType::kString, 1, Texts({"a b"}));
  } else {
    file.Array("tokenizer.ggml.scores", ValueType::kFloat32, tokens.size(), scores);
  }
  file.Uint32("tokenizer.ggml.bos_token_id", 3).Uint32("tokenizer.ggml.eos_token_id", 4);
  file.Key("tokenizer.ggml.add_bos_token", ValueType::kBool, Raw<uint8_t>(1));
  file.String("tokenizer.chat_template", "{{ messages }}");
  file.Tensor("token_embd.weight", {32, 8}, 0, 0);
  file.Tensor("blk.0.attn_q.weight", {32, 1}, 8, 1024);
  file.Tensor("rope_freqs.weight", {4}, 0, 1088);
  return file.Data(1104).Build();
}

void ReadAll(const gguf::File& file) {
  for (const auto& [key, value] : file.metadata()) {
    (void)file.Integer(key);
    (void)file.Number(key);
    (void)file.Boolean(key);
    (void)file.String(key);
    (void)file.Integers(key);
    (void)file.Numbers(key);
    (void)file.Booleans(key);
    (void)file.Strings(key);
  }
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    if (!gguf::CanDequantise(tensor.type)) continue;
    const int64_t block = gguf::InfoOf(tensor.type).block_elements;
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    count = std::min<int64_t>(count, 1024) / block * block;
    std::vector<float> values(static_cast<size_t>(count));
    gguf::Dequantise(tensor.type, file.Data(tensor).data(), count, values.data());
  }
}

}  // namespace

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds = {FileBuilder().Build()};
  for (const char* architecture : {"llama", "qwen2", "qwen3", "phi3", "deepseek2"}) {
    for (const char* tokenizer : {"gpt2", "llama"}) seeds.push_back(Model(architecture, tokenizer));
  }
  return seeds;
}

}  // namespace retort

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = retort::gguf::File::Parse({reinterpret_cast<const char*>(data), size}, "fuzz.gguf");
  if (!file.ok()) return 0;
  retort::ReadAll(**file);
  if (const auto config = retort::gguf::ConfigFromGguf(**file); config.ok()) {
    (void)retort::gguf::GeometryOf(*config, "fuzz");
    retort::gguf::Metadata metadata;
    std::vector<std::string> warnings;
    if (const auto* family = retort::gguf::FindFamilyOfModelType(config->value("model_type", ""))) {
      (void)retort::gguf::ConfigToMetadata(*config, "fuzz", *family, metadata, warnings);
    }
  }
  (void)retort::gguf::GenerationConfigFromGguf(**file);
  (void)retort::gguf::TokenizerFilesFromGguf(**file);
  return 0;
}
