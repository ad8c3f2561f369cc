#include "model/tokenizer_class.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace retort {
namespace {

using nlohmann::json;

// models/auto/tokenization_auto.py's TOKENIZER_MAPPING_NAMES, where a class below is named.
constexpr absl::string_view kQwen2Types[] = {
    "audioflamingo3", "colqwen2",       "cosmos3_omni", "fun_asr_nano", "hunyuan_vl",   "internvl",
    "lighton_ocr",    "ovis2",          "qianfan_ocr",  "qwen2",        "qwen2_5_omni", "qwen2_5_vl",
    "qwen2_audio",    "qwen2_moe",      "qwen2_vl",     "qwen3",        "qwen3_asr",    "qwen3_moe",
    "qwen3_next",     "qwen3_omni_moe", "qwen3_vl",     "qwen3_vl_moe", "vibevoice"};
constexpr absl::string_view kGpt2Types[] = {
    "blip-2",       "codegen",           "dbrx",  "emu3", "gpt2", "gpt_neo",   "gptj",
    "instructblip", "instructblipvideo", "jais2", "opt",  "phi",  "starcoder2"};
constexpr absl::string_view kLlamaTypes[] = {"idefics", "idefics2"};
// Types that take the file as it stands whatever class the folder names.
constexpr absl::string_view kAsFileTypes[] = {"arctic",
                                              "aria",
                                              "bigbird_pegasus",
                                              "camembertv2-base",
                                              "canary",
                                              "chameleon",
                                              "chatlm",
                                              "cohere_asr",
                                              "deepseek_ocr",
                                              "deepseek_ocr2",
                                              "deepseek_v2",
                                              "deepseek_v3",
                                              "deepseek_v32",
                                              "deepseek_v4",
                                              "deepseek_vl",
                                              "deepseek_vl_hybrid",
                                              "deepseek_vl_v2",
                                              "ernie4_5",
                                              "ernie4_5_moe",
                                              "flex_olmo",
                                              "fuyu",
                                              "glm",
                                              "glm4",
                                              "glm4_moe",
                                              "glm4_moe_lite",
                                              "glm4v",
                                              "glm4v_moe",
                                              "glm_image",
                                              "glmasr",
                                              "got_ocr2",
                                              "gpt_bigcode",
                                              "granite",
                                              "granitemoe",
                                              "granitemoehybrid",
                                              "granitemoeshared",
                                              "h2ovl_chat",
                                              "hyperclovax",
                                              "hyperclovax_vlm",
                                              "internlm2",
                                              "jamba",
                                              "janus",
                                              "kimi_k25",
                                              "kimi_linear",
                                              "kosmos-2",
                                              "llava",
                                              "llava_next",
                                              "mimo_v2_flash",
                                              "minicpm3",
                                              "minicpmv",
                                              "minicpmv4_6",
                                              "minimax_m2",
                                              "ministral",
                                              "ministral3",
                                              "mistral",
                                              "mistral3",
                                              "mixtral",
                                              "modernbert",
                                              "molmo",
                                              "molmo2",
                                              "nemotron",
                                              "nvfp4",
                                              "nystromformer",
                                              "olmo2",
                                              "olmo3",
                                              "olmo_hybrid",
                                              "opencua",
                                              "openvla",
                                              "paddleocr_vl",
                                              "pegasus_x",
                                              "persimmon",
                                              "phi3",
                                              "phi3_v",
                                              "phimoe",
                                              "pix2struct",
                                              "pixtral",
                                              "smolvlm",
                                              "stablelm",
                                              "step3_vl",
                                              "step3p5",
                                              "umt5",
                                              "vipllava",
                                              "vision-encoder-decoder",
                                              "voxtral",
                                              "voxtral_realtime",
                                              "xlm-roberta-xl"};

template <size_t N>
bool Holds(const absl::string_view (&list)[N], absl::string_view value) {
  return std::find(std::begin(list), std::end(list), value) != std::end(list);
}

TokenizerClass ByName(absl::string_view name) {
  name = absl::StripSuffix(name, "Fast");
  if (name == "LlamaTokenizer") return TokenizerClass::kLlama;
  if (name == "Qwen2Tokenizer") return TokenizerClass::kQwen2;
  if (name == "GPT2Tokenizer") return TokenizerClass::kGpt2;
  return TokenizerClass::kAsFile;
}

json Bpe(json vocab, json merges) {
  if (vocab.is_array()) {
    json by_token = json::object();
    for (size_t i = 0; i < vocab.size(); ++i) {
      const json& token = vocab[i].is_array() && !vocab[i].empty() ? vocab[i][0] : vocab[i];
      if (token.is_string()) by_token[token.get<std::string>()] = i;
    }
    vocab = std::move(by_token);
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", ""},
          {"end_of_word_suffix", ""},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", merges.is_null() ? json::array() : std::move(merges)}};
}

json ByteLevel(bool add_prefix_space, bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

// What the constructor was given for `key`; null: its default.
json Given(const json& config, const char* key) { return config.is_object() ? config.value(key, json()) : json(); }

bool IsTrue(const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  return !value.is_null() && !(value.is_string() && value.get_ref<const std::string&>().empty());
}

}  // namespace

TokenizerClass ChooseTokenizerClass(absl::string_view named, absl::string_view model_type) {
  if (Holds(kAsFileTypes, model_type)) {
    // The name stands only where it says the same.
    return TokenizerClass::kAsFile;
  }
  if (model_type == "qwen2") return TokenizerClass::kQwen2;  // what its folders name is known to be wrong
  if (!named.empty()) return ByName(named);
  if (Holds(kQwen2Types, model_type)) return TokenizerClass::kQwen2;
  if (Holds(kGpt2Types, model_type)) return TokenizerClass::kGpt2;
  if (Holds(kLlamaTypes, model_type)) return TokenizerClass::kLlama;
  return TokenizerClass::kAsFile;
}

std::string SavedTokenizerClass(TokenizerClass chosen, absl::string_view named, absl::string_view model_type) {
  switch (chosen) {
    case TokenizerClass::kLlama:
      return "LlamaTokenizer";
    case TokenizerClass::kQwen2:
      return "Qwen2Tokenizer";
    case TokenizerClass::kGpt2:
      return "GPT2Tokenizer";
    case TokenizerClass::kAsFile:
      break;
  }
  // A name that did not count beside its config.json must not begin to count without it.
  const bool counts = !named.empty() && !Holds(kAsFileTypes, model_type);
  return counts ? std::string(named) : "PreTrainedTokenizerFast";
}

json DefaultSpecialTokens(TokenizerClass chosen) {
  constexpr const char* kEnd = "<|endoftext|>";
  switch (chosen) {
    case TokenizerClass::kLlama:
      return {{"unk_token", "<unk>"}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
    case TokenizerClass::kQwen2:
      return {{"unk_token", kEnd}, {"eos_token", kEnd}, {"pad_token", kEnd}};
    case TokenizerClass::kGpt2:
      return {{"unk_token", kEnd}, {"bos_token", kEnd}, {"eos_token", kEnd}};
    case TokenizerClass::kAsFile:
      break;
  }
  return json::object();
}

json RebuildTokenizer(TokenizerClass chosen, json vocab, json merges, const json& config) {
  json built = {{"version", "1.0"},      {"truncation", nullptr},
                {"padding", nullptr},    {"added_tokens", json::array()},
                {"normalizer", nullptr}, {"post_processor", nullptr}};
  built["model"] = Bpe(std::move(vocab), std::move(merges));
  const json prefix = Given(config, "add_prefix_space");
  const bool add_prefix_space = IsTrue(prefix);
  if (chosen == TokenizerClass::kLlama) {
    built["model"]["fuse_unk"] = true;
    built["model"]["byte_fallback"] = true;
    built["model"]["continuing_subword_prefix"] = nullptr;
    built["model"]["end_of_word_suffix"] = nullptr;
    const bool prefixed = prefix.is_null() || add_prefix_space;
    const char* scheme = !prefixed ? "never" : IsTrue(Given(config, "legacy")) ? "always" : "first";
    built["pre_tokenizer"] = {
        {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
    json decoders = json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                                 {{"type", "ByteFallback"}},
                                 {{"type", "Fuse"}}});
    if (prefixed) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    built["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
    return built;
  }
  built["decoder"] = ByteLevel(true, true);
  if (chosen == TokenizerClass::kGpt2) {
    built["pre_tokenizer"] = ByteLevel(add_prefix_space, true);
    return built;
  }
  constexpr const char* kPattern =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  built["normalizer"] = {{"type", "NFC"}};
  json split = {{"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  built["pre_tokenizer"] = {{"type", "Sequence"},
                            {"pretokenizers", json::array({std::move(split), ByteLevel(add_prefix_space, false)})}};
  return built;
}

}  // namespace retort
