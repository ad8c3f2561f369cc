#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/status.h"
#include "model/gguf/pre_tokenizers.h"
#include "model/gguf/sentencepiece.h"
#include "model/gguf/vocab.h"

namespace retort::gguf {
namespace {

using nlohmann::json;

constexpr size_t kMaxTokens = 1 << 22;
constexpr const char* kSpace = "\u2581";  // SentencePiece's

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<TokenType> types;
  bool has_types = false;
  std::optional<int64_t> bos, eos, unk, pad;
  bool add_bos = false;
  bool add_eos = false;
};

absl::StatusOr<std::optional<int64_t>> TokenId(const File& file, absl::string_view key, size_t count) {
  if (!file.Has(key)) return std::optional<int64_t>();
  ASSIGN_OR_RETURN(const int64_t id, file.Integer(key));
  if (id < 0 || static_cast<size_t>(id) >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": metadata key \"", key, "\" is ", id, "; the vocabulary has ", count, " tokens"));
  }
  return std::optional<int64_t>(id);
}

absl::StatusOr<bool> Flag(const File& file, absl::string_view key, bool fallback) {
  if (!file.Has(key)) return fallback;
  return file.Boolean(key);
}

absl::StatusOr<Vocabulary> ReadVocabulary(const File& file, bool adds_bos) {
  Vocabulary vocabulary;
  ASSIGN_OR_RETURN(vocabulary.tokens, file.Strings("tokenizer.ggml.tokens"));
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.tokens holds ", count, " tokens"));
  }
  vocabulary.types.assign(count, TokenType::kNormal);
  if (file.Has("tokenizer.ggml.token_type")) {
    vocabulary.has_types = true;
    ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.Integers("tokenizer.ggml.token_type"));
    if (types.size() != count) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.token_type has ", types.size(),
                                                     " entries for ", count, " tokens"));
    }
    for (size_t i = 0; i < count; ++i) {
      if (types[i] >= 1 && types[i] <= 6) vocabulary.types[i] = static_cast<TokenType>(types[i]);
    }
  }
  ASSIGN_OR_RETURN(vocabulary.bos, TokenId(file, "tokenizer.ggml.bos_token_id", count));
  ASSIGN_OR_RETURN(vocabulary.eos, TokenId(file, "tokenizer.ggml.eos_token_id", count));
  ASSIGN_OR_RETURN(vocabulary.unk, TokenId(file, "tokenizer.ggml.unknown_token_id", count));
  ASSIGN_OR_RETURN(vocabulary.pad, TokenId(file, "tokenizer.ggml.padding_token_id", count));
  ASSIGN_OR_RETURN(vocabulary.add_bos, Flag(file, "tokenizer.ggml.add_bos_token", adds_bos));
  ASSIGN_OR_RETURN(vocabulary.add_eos, Flag(file, "tokenizer.ggml.add_eos_token", false));
  return vocabulary;
}

// [PAD123] and the like stand for rows of the embedding that no text reaches: no tokenizer.json has them.
json VocabularyJson(const Vocabulary& vocabulary) {
  json vocab = json::object();
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.types[i] != TokenType::kUnused) vocab[vocabulary.tokens[i]] = i;
  }
  return vocab;
}

json AddedToken(size_t id, const std::string& text, bool special, bool strips_right) {
  return {{"id", id},          {"content", text},        {"single_word", false},
          {"lstrip", false},   {"rstrip", strips_right}, {"normalized", false},
          {"special", special}};
}

// Phi-3's control tokens swallow the white space after them, which no key says.
bool StripsRight(const std::string& architecture, const std::string& token) {
  if (architecture != "phi3") return false;
  for (const char* name : {"</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"}) {
    if (token == name) return true;
  }
  return absl::StartsWith(token, "<|placeholder");
}

json AddedTokens(const Vocabulary& vocabulary, const std::string& architecture, bool sentencepiece) {
  json added = json::array();
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const bool unknown = sentencepiece && vocabulary.types[i] == TokenType::kUnknown;
    const bool special = vocabulary.types[i] == TokenType::kControl || unknown;
    if (!special && vocabulary.types[i] != TokenType::kUserDefined) continue;
    if (vocabulary.tokens[i].empty()) continue;
    added.push_back(
        AddedToken(i, vocabulary.tokens[i], special, sentencepiece && StripsRight(architecture, vocabulary.tokens[i])));
  }
  return added;
}

// Puts bos before and eos behind a text where the file says so; else `plain`.
json PostProcessor(const Vocabulary& vocabulary, json plain) {
  json single = json::array();
  json pair = json::array();
  json special = json::object();
  const auto put = [&](std::optional<int64_t> id, int second) {
    const std::string& token = vocabulary.tokens[static_cast<size_t>(*id)];
    special[token] = {{"id", token}, {"ids", {*id}}, {"tokens", {token}}};
    const json entry = {{"SpecialToken", {{"id", token}, {"type_id", second}}}};
    if (second == 0) single.push_back(entry);
    pair.push_back(entry);
  };
  const bool bos = vocabulary.add_bos && vocabulary.bos;
  const bool eos = vocabulary.add_eos && vocabulary.eos;
  if (!bos && !eos) return plain;
  if (bos) put(vocabulary.bos, 0);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  pair.push_back(single.back());
  if (eos) put(vocabulary.eos, 0);
  if (bos) put(vocabulary.bos, 1);
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  if (eos) put(vocabulary.eos, 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

absl::StatusOr<json> ReadMerges(const File& file, const json& vocab) {
  json merges = json::array();
  ASSIGN_OR_RETURN(const std::vector<std::string> lines, file.Strings("tokenizer.ggml.merges"));
  for (size_t i = 0; i < lines.size(); ++i) {
    const size_t space = lines[i].find(' ', 1);
    const auto refuse = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.merges: entry ", i, " ", why));
    };
    if (space == std::string::npos || space + 1 == lines[i].size()) return refuse("is no pair of tokens");
    const std::string left = lines[i].substr(0, space);
    const std::string right = lines[i].substr(space + 1);
    for (const std::string& part : {left, right, left + right}) {
      if (!vocab.contains(part)) return refuse("names a token that the vocabulary does not have");
    }
    merges.push_back({left, right});
  }
  return merges;
}

absl::StatusOr<json> ByteLevelTokenizer(const File& file, const std::string& architecture, Vocabulary& vocabulary) {
  std::string name = "default";
  if (file.Has("tokenizer.ggml.pre")) {
    ASSIGN_OR_RETURN(name, file.String("tokenizer.ggml.pre"));
  }
  const PreTokenizer* pre = FindPreTokenizer(name);
  if (pre == nullptr) {
    return absl::UnimplementedError(absl::StrCat(file.path(), ": tokenizer.ggml.pre \"", name,
                                                 "\" is not known; these are: ", PreTokenizerNames()));
  }
  ASSIGN_OR_RETURN(vocabulary, ReadVocabulary(file, pre->adds_bos));
  json vocab = VocabularyJson(vocabulary);
  ASSIGN_OR_RETURN(json merges, ReadMerges(file, vocab));
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}};
  return json{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", AddedTokens(vocabulary, architecture, false)},
      {"normalizer", NormalizerJson(*pre)},
      {"pre_tokenizer", PreTokenizerJson(*pre)},
      {"post_processor", PostProcessor(vocabulary, byte_level)},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", pre->ignore_merges},
        {"vocab", std::move(vocab)},
        {"merges", std::move(merges)}}}};
}

absl::StatusOr<json> SentencePieceTokenizer(const File& file, const std::string& architecture, Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(vocabulary, ReadVocabulary(file, true));
  json vocab = VocabularyJson(vocabulary);
  json merges = json::array();
  if (file.Has("tokenizer.ggml.merges")) {
    ASSIGN_OR_RETURN(merges, ReadMerges(file, vocab));
  } else {
    ASSIGN_OR_RETURN(const std::vector<double> scores, file.Numbers("tokenizer.ggml.scores"));
    if (scores.size() != vocabulary.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.scores has ", scores.size(),
                                                     " entries for ", vocabulary.tokens.size(), " tokens"));
    }
    std::vector<std::string> tokens;
    std::vector<double> token_scores;
    for (size_t i = 0; i < scores.size(); ++i) {
      if (vocabulary.types[i] == TokenType::kUnused) continue;
      tokens.push_back(vocabulary.tokens[i]);
      token_scores.push_back(scores[i]);
    }
    for (auto& [left, right] : MergesFromScores(tokens, token_scores)) merges.push_back({left, right});
  }
  ASSIGN_OR_RETURN(const bool prefix, Flag(file, "tokenizer.ggml.add_space_prefix", true));
  json normalizers = json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  json unk = nullptr;
  if (vocabulary.unk) unk = vocabulary.tokens[static_cast<size_t>(*vocabulary.unk)];
  return json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", AddedTokens(vocabulary, architecture, true)},
              {"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}},
              {"pre_tokenizer", nullptr},
              {"post_processor", PostProcessor(vocabulary, nullptr)},
              {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", std::move(unk)},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", true},
                {"byte_fallback", true},
                {"ignore_merges", false},
                {"vocab", std::move(vocab)},
                {"merges", std::move(merges)}}}};
}

// The file's own tokenizer.json, where it has one, and the tokens of it that have a part of their own.
absl::StatusOr<json> OwnTokenizer(const File& file, Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const std::string text, file.String("tokenizer.huggingface.json"));
  const std::string where = file.path() + ": tokenizer.huggingface.json";
  ASSIGN_OR_RETURN(json tokenizer, ParseJson(text, where));
  if (!tokenizer.is_object()) return absl::InvalidArgumentError(where + " is no JSON object");
  // A plain token has no part: naming it would make it a special one.
  std::map<int64_t, std::string> texts;
  if (const auto added = tokenizer.find("added_tokens"); added != tokenizer.end() && added->is_array()) {
    for (const json& token : *added) {
      if (token.is_object() && token.contains("id") && token["id"].is_number_integer() && token.contains("content") &&
          token["content"].is_string()) {
        texts[token["id"].get<int64_t>()] = token["content"].get<std::string>();
      }
    }
  }
  const auto find = [&](absl::string_view key, std::optional<int64_t>& place) -> absl::Status {
    if (!file.Has(key)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const int64_t id, file.Integer(key));
    const auto token = texts.find(id);
    if (token == texts.end()) return absl::OkStatus();
    place = static_cast<int64_t>(vocabulary.tokens.size());
    vocabulary.tokens.push_back(token->second);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(find("tokenizer.ggml.bos_token_id", vocabulary.bos));
  RETURN_IF_ERROR(find("tokenizer.ggml.eos_token_id", vocabulary.eos));
  RETURN_IF_ERROR(find("tokenizer.ggml.unknown_token_id", vocabulary.unk));
  RETURN_IF_ERROR(find("tokenizer.ggml.padding_token_id", vocabulary.pad));
  ASSIGN_OR_RETURN(vocabulary.add_bos, Flag(file, "tokenizer.ggml.add_bos_token", false));
  ASSIGN_OR_RETURN(vocabulary.add_eos, Flag(file, "tokenizer.ggml.add_eos_token", false));
  return tokenizer;
}

absl::Status AddTemplates(const File& file, json& config) {
  if (!file.Has("tokenizer.chat_template")) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::string main, file.String("tokenizer.chat_template"));
  if (!file.Has("tokenizer.chat_templates")) {
    config["chat_template"] = std::move(main);
    return absl::OkStatus();
  }
  json list = {{{"name", "default"}, {"template", std::move(main)}}};
  ASSIGN_OR_RETURN(const std::vector<std::string> names, file.Strings("tokenizer.chat_templates"));
  for (const std::string& name : names) {
    if (name == "default") continue;
    ASSIGN_OR_RETURN(std::string text, file.String("tokenizer.chat_template." + name));
    list.push_back({{"name", name}, {"template", std::move(text)}});
  }
  config["chat_template"] = std::move(list);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> TokenizerFilesFromGguf(const File& file) {
  std::string kind = "none";
  if (file.Has("tokenizer.ggml.model")) {
    ASSIGN_OR_RETURN(kind, file.String("tokenizer.ggml.model"));
  }
  const bool own = file.Has("tokenizer.huggingface.json");
  std::map<std::string, std::string> files;
  ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  Vocabulary vocabulary;
  json tokenizer;
  if (own) {
    ASSIGN_OR_RETURN(tokenizer, OwnTokenizer(file, vocabulary));
  } else if (kind == "gpt2") {
    ASSIGN_OR_RETURN(tokenizer, ByteLevelTokenizer(file, architecture, vocabulary));
  } else if (kind == "llama") {
    ASSIGN_OR_RETURN(tokenizer, SentencePieceTokenizer(file, architecture, vocabulary));
  } else if (kind == "none") {
    return files;
  } else {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": tokenizer.ggml.model \"", kind, "\" is not supported; gpt2 and llama are"));
  }
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  if (const auto context = file.Integer(architecture + ".context_length"); context.ok()) {
    config["model_max_length"] = *context;
  }
  // A tokenizer.json that leaves this to tokenizer_config.json.
  if (own && !tokenizer.value("post_processor", json()).is_object()) {
    if (vocabulary.add_bos) config["add_bos_token"] = true;
    if (vocabulary.add_eos) config["add_eos_token"] = true;
  }
  json special = json::object();
  for (const auto& [name, id] : {std::pair("bos_token", vocabulary.bos), std::pair("eos_token", vocabulary.eos),
                                 std::pair("unk_token", vocabulary.unk), std::pair("pad_token", vocabulary.pad)}) {
    if (!id) continue;
    // A plain token that begins texts is no special one, and naming it here would make it one.
    const auto place = static_cast<size_t>(*id);
    if (vocabulary.has_types && vocabulary.types[place] == TokenType::kNormal) continue;
    special[name] = vocabulary.tokens[place];
  }
  config.update(special);
  RETURN_IF_ERROR(AddTemplates(file, config));
  files["tokenizer.json"] = tokenizer.dump();
  files["tokenizer_config.json"] = config.dump(2) + "\n";
  files["special_tokens_map.json"] = special.dump(2) + "\n";
  return files;
}

}  // namespace retort::gguf
