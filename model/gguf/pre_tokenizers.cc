#include "model/gguf/pre_tokenizers.h"

#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"

namespace retort::gguf {
namespace {

using nlohmann::json;

constexpr const char* kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenRegex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4oRegex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The formatter breaks such text at another place each time.
// clang-format off
constexpr const char* kDeepseekLetters =
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ"
    "-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐ"
    "ῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ"
    "ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
// clang-format on
constexpr const char* kDeepseekPunctuation = "\\s?[!-/:-~！-／：-～‘-‟　-。]+";
constexpr const char* kDeepseekIdeographs = "[一-龥ࠀ-一가-퟿]+";
constexpr const char* kDeepseek3Ideographs = "[一-龥぀-ゟ゠-ヿ]+";
constexpr const char* kDeepseek3Regex =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

// "digits" stands for single digits; everything else is a regex whose matches become pieces of their own.
constexpr const char* kDigits = "digits";

struct Row {
  PreTokenizer pre;
  bool nfc;
  bool gpt2_regex;  // the byte-level step cuts by GPT-2's regex too
  std::vector<const char*> steps;
  std::vector<const char*> other_names;  // llama.cpp's for what cuts the same way
};

// The first row with given steps is the one that is recognised.
const std::vector<Row>& Rows() {
  static const std::vector<Row>& rows = *new std::vector<Row>{
      {{"llama-bpe", true, true},
       false,
       false,
       {kLlama3Regex},
       {"llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}},
      {{"dbrx", false, false}, false, false, {kLlama3Regex}, {"smaug-bpe"}},
      {{"qwen2", false, false}, true, false, {kQwen2Regex}, {"deepseek-r1-qwen", "kormo", "megrez", "f2llmv2"}},
      {{"stablelm2", false, false}, false, false, {kQwen2Regex}, {}},
      {{"smollm", false, false},
       false,
       true,
       {kDigits},
       {"starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}},
      {{"gpt-2", false, false},
       false,
       true,
       {},
       {"default", "phi-2", "mpt", "olmo", "jais", "gigachat", "roberta-bpe"}},
      {{"deepseek-llm", false, false},
       false,
       false,
       {"[\r\n]", kDeepseekLetters, kDeepseekPunctuation, "\\s+$", kDeepseekIdeographs, kDigits},
       {}},
      {{"deepseek-coder", false, false},
       false,
       false,
       {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", kDeepseekIdeographs, kDigits},
       {}},
      {{"deepseek-v3", false, false},
       false,
       false,
       {"\\p{N}{1,3}", kDeepseek3Ideographs, kDeepseek3Regex},
       {"hunyuan-dense"}},
      {{"tekken", true, true}, false, false, {kTekkenRegex}, {}},
      {{"gpt-4o", false, false}, false, false, {kGpt4oRegex}, {"llama4", "kanana2"}},
  };
  return rows;
}

const Row& RowOf(const PreTokenizer& pre) {
  for (const Row& row : Rows()) {
    if (&row.pre == &pre) return row;
  }
  return Rows().front();
}

std::string Text(const json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

bool Flag(const json& object, const char* key, bool fallback) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() ? it->get<bool>() : fallback;
}

// A tokenizer.json's steps as Row has them; nothing where one is of another kind.
struct Steps {
  std::vector<std::string> steps;
  bool gpt2_regex = false;
};
std::optional<Steps> ReadSteps(const json& pre_tokenizer) {
  Steps result;
  std::vector<json> list = {pre_tokenizer};
  if (Text(pre_tokenizer, "type") == "Sequence") {
    const auto it = pre_tokenizer.find("pretokenizers");
    if (it == pre_tokenizer.end() || !it->is_array()) return std::nullopt;
    list.clear();
    for (const json& step : *it) list.push_back(step);
  }
  bool byte_level = false;
  for (const json& step : list) {
    const std::string type = Text(step, "type");
    if (byte_level) return std::nullopt;
    if (type == "Split") {
      const auto pattern = step.find("pattern");
      const std::string regex = pattern == step.end() ? "" : Text(*pattern, "Regex");
      if (regex.empty() || Text(step, "behavior") != "Isolated" || Flag(step, "invert", false)) return std::nullopt;
      result.steps.push_back(regex);
    } else if (type == "Digits" && Flag(step, "individual_digits", false)) {
      result.steps.push_back(kDigits);
    } else if (type == "ByteLevel" && !Flag(step, "add_prefix_space", true)) {
      byte_level = true;
      result.gpt2_regex = Flag(step, "use_regex", true);
    } else {
      return std::nullopt;
    }
  }
  if (!byte_level) return std::nullopt;
  return result;
}

// DeepSeek's list of letters is long enough that its beginning says which it is.
bool SameStep(const std::string& step, const char* wanted) {
  return step == wanted || (wanted == kDeepseekLetters && absl::StartsWith(step, "\\s?[A-Za-z\u00b5"));
}

}  // namespace

const PreTokenizer* FindPreTokenizer(absl::string_view name) {
  for (const Row& row : Rows()) {
    if (name == row.pre.name) return &row.pre;
    for (const char* other : row.other_names) {
      if (name == other) return &row.pre;
    }
  }
  return nullptr;
}

std::string PreTokenizerNames() {
  std::vector<std::string> names;
  for (const Row& row : Rows()) {
    names.push_back(row.pre.name);
    names.insert(names.end(), row.other_names.begin(), row.other_names.end());
  }
  return absl::StrJoin(names, ", ");
}

json PreTokenizerJson(const PreTokenizer& pre) {
  const Row& row = RowOf(pre);
  json steps = json::array();
  for (const char* step : row.steps) {
    if (step == kDigits) {
      steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
    } else {
      steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", step}}}, {"behavior", "Isolated"}, {"invert", false}});
    }
  }
  json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", row.gpt2_regex}};
  if (steps.empty()) return byte_level;
  steps.push_back(std::move(byte_level));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

json NormalizerJson(const PreTokenizer& pre) { return RowOf(pre).nfc ? json{{"type", "NFC"}} : json(); }

const PreTokenizer* RecognisePreTokenizer(const json& tokenizer) {
  const auto pre_tokenizer = tokenizer.find("pre_tokenizer");
  const auto model = tokenizer.find("model");
  if (pre_tokenizer == tokenizer.end() || model == tokenizer.end()) return nullptr;
  const auto steps = ReadSteps(*pre_tokenizer);
  if (!steps) return nullptr;
  const auto normalizer = tokenizer.find("normalizer");
  const std::string normal = normalizer == tokenizer.end() ? "" : Text(*normalizer, "type");
  const bool normalizes = normalizer != tokenizer.end() && normalizer->is_object();
  const bool ignore_merges = Flag(*model, "ignore_merges", false);
  const PreTokenizer* found = nullptr;
  for (const Row& row : Rows()) {
    if (row.gpt2_regex != steps->gpt2_regex || row.steps.size() != steps->steps.size()) continue;
    bool same = true;
    for (size_t i = 0; i < row.steps.size(); ++i) same = same && SameStep(steps->steps[i], row.steps[i]);
    if (!same) continue;
    // llama.cpp normalises nothing, so NFC and none are told apart by the steps first.
    if (normalizes && normal != "NFC" && !(normal == "Sequence" && (*normalizer)["normalizers"].empty())) continue;
    if (row.pre.ignore_merges == ignore_merges && row.nfc == (normal == "NFC")) return &row.pre;
    if (found == nullptr || (row.pre.ignore_merges == ignore_merges && found->ignore_merges != ignore_merges)) {
      found = &row.pre;
    }
  }
  return found;
}

}  // namespace retort::gguf
