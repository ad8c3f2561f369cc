#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/gguf/pre_tokenizers.h"
#include "model/gguf/sentencepiece.h"
#include "model/gguf/vocab.h"

namespace retort::gguf {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kSpace = "\u2581";
constexpr float kAddedScore = -1000.0F;  // as llama.cpp's converter gives added tokens
constexpr float kUnusedScore = -10000.0F;

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

const json* Find(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::string Text(const json& object, const char* key) {
  const json* value = Find(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

bool Flag(const json& object, const char* key, bool fallback = false) {
  const json* value = Find(object, key);
  return value != nullptr && value->is_boolean() ? value->get<bool>() : fallback;
}

// A special token in tokenizer_config.json: its text, or an object with it.
std::string TokenText(const json& config, const char* key) {
  const json* value = Find(config, key);
  if (value == nullptr) return "";
  return value->is_string() ? value->get<std::string>() : Text(*value, "content");
}

struct Token {
  std::string text;
  TokenType type = TokenType::kUnused;
  float score = kUnusedScore;
};

// Reads the files of one folder and writes its metadata.
class Converter {
 public:
  Converter(const std::string& folder, int64_t vocab_size, Metadata& metadata, std::vector<std::string>& warnings)
      : folder_(folder), tokens_(static_cast<size_t>(vocab_size)), metadata_(metadata), warnings_(warnings) {
    for (size_t i = 0; i < tokens_.size(); ++i) tokens_[i].text = absl::StrCat("[PAD", i, "]");
  }

  absl::Status Convert() {
    if (Exists(folder_ + "/tokenizer_config.json")) {
      ASSIGN_OR_RETURN(config_, ReadJsonFile(folder_ + "/tokenizer_config.json"));
    }
    for (const char* name : {"config.json", "generation_config.json"}) {
      if (!Exists(folder_ + "/" + name)) continue;
      ASSIGN_OR_RETURN((name[0] == 'c' ? model_config_ : generation_), ReadJsonFile(folder_ + "/" + name));
    }
    const std::string path = folder_ + "/tokenizer.json";
    if (!Exists(path)) {
      warnings_.push_back(absl::StrCat(folder_, " has no tokenizer.json: the file will take token ids only"));
      metadata_.String("tokenizer.ggml.model", "none");
      WriteSpecialIds();
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(text_, ReadFile(path));
    ASSIGN_OR_RETURN(tokenizer_, ParseJson(text_, path));
    RETURN_IF_ERROR(ReadTokens());
    const json* model = Find(tokenizer_, "model");
    if (Text(*model, "type") != "BPE") {
      warnings_.push_back(absl::StrCat("llama.cpp has no tokenizer of type ", Text(*model, "type"),
                                       ": it will take token ids only from the file"));
      metadata_.String("tokenizer.ggml.model", "none");
    } else if (Flag(*model, "byte_fallback")) {
      RETURN_IF_ERROR(WriteSentencePiece(*model));
    } else {
      RETURN_IF_ERROR(WriteByteLevel(*model));
    }
    WriteSpecialIds();
    RETURN_IF_ERROR(WriteTemplates());
    metadata_.String("tokenizer.huggingface.json", text_);
    return absl::OkStatus();
  }

 private:
  absl::Status Refuse(absl::string_view why) const {
    return absl::InvalidArgumentError(absl::StrCat(folder_, "/tokenizer.json: ", why));
  }

  // The id, where it is one of the model's.
  absl::StatusOr<size_t> IdOf(const json& value, absl::string_view what) const {
    if (!value.is_number_integer() || value.get<int64_t>() < 0) return Refuse(absl::StrCat(what, " has no id"));
    const auto id = static_cast<size_t>(value.get<int64_t>());
    if (id >= tokens_.size()) {
      return Refuse(absl::StrCat(what, " has id ", id, "; the model's vocab_size is ", tokens_.size()));
    }
    return id;
  }

  absl::Status Add(size_t id, const std::string& text, bool special) {
    const bool looks_special = text == "<pad>" || text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" ||
                               (absl::StartsWith(text, "<|") && absl::EndsWith(text, "|>")) ||
                               (absl::StartsWith(text, "<\uFF5C") && absl::EndsWith(text, "\uFF5C>")) ||
                               (absl::StartsWith(text, "<unused") && absl::EndsWith(text, ">"));
    const bool control = special || looks_special;
    // llama.cpp looks for these as they stand, so spaces are spaces.
    tokens_[id].text = control ? text : absl::StrReplaceAll(text, {{kSpace, " "}});
    tokens_[id].type = control ? TokenType::kControl : TokenType::kUserDefined;
    tokens_[id].score = kAddedScore;
    ids_[text] = id;
    return absl::OkStatus();
  }

  absl::Status ReadTokens() {
    const json* model = Find(tokenizer_, "model");
    const json* vocab = model == nullptr ? nullptr : Find(*model, "vocab");
    if (vocab == nullptr) return Refuse("has no model.vocab");
    if (vocab->is_object()) {
      for (const auto& [text, value] : vocab->items()) {
        ASSIGN_OR_RETURN(const size_t id, IdOf(value, absl::StrCat("token \"", text, "\"")));
        tokens_[id] = {text, TokenType::kNormal, 0.0F};
        ids_[text] = id;
      }
    }
    if (const json* added = Find(tokenizer_, "added_tokens"); added != nullptr) {
      if (!added->is_array()) return Refuse("added_tokens is no list");
      for (const json& token : *added) {
        if (!token.is_object() || !token.contains("id")) return Refuse("added_tokens: an entry has no id");
        ASSIGN_OR_RETURN(const size_t id, IdOf(token["id"], absl::StrCat("\"", Text(token, "content"), "\"")));
        RETURN_IF_ERROR(Add(id, Text(token, "content"), Flag(token, "special")));
      }
    }
    if (const json* decoder = Find(config_, "added_tokens_decoder"); decoder != nullptr && decoder->is_object()) {
      for (const auto& [key, token] : decoder->items()) {
        size_t id = 0;
        // What is no token of the model is none here either.
        if (!absl::SimpleAtoi(key, &id) || id >= tokens_.size() || !token.is_object()) continue;
        RETURN_IF_ERROR(Add(id, Text(token, "content"), Flag(token, "special")));
      }
    }
    return absl::OkStatus();
  }

  void WriteTokens(bool with_scores) {
    std::vector<std::string> texts;
    std::vector<int32_t> types;
    std::vector<float> scores;
    for (const Token& token : tokens_) {
      texts.push_back(token.text);
      types.push_back(static_cast<int32_t>(token.type));
      scores.push_back(token.score);
    }
    metadata_.Strings("tokenizer.ggml.tokens", texts);
    if (with_scores) metadata_.Float32s("tokenizer.ggml.scores", scores);
    metadata_.Int32s("tokenizer.ggml.token_type", types);
  }

  // Pairs as they stand in the file, old spelling ("a b") and new (["a", "b"]).
  absl::StatusOr<std::vector<Merge>> ReadMerges(const json& model) const {
    std::vector<Merge> merges;
    const json* list = Find(model, "merges");
    if (list == nullptr || !list->is_array()) return Refuse("has no model.merges");
    for (const json& entry : *list) {
      if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
        merges.emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
        continue;
      }
      const std::string text = entry.is_string() ? entry.get<std::string>() : "";
      const size_t space = text.find(' ', 1);
      if (space == std::string::npos) return Refuse(absl::StrCat("model.merges: entry ", merges.size(), " is no pair"));
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
    return merges;
  }

  absl::Status WriteByteLevel(const json& model) {
    const PreTokenizer* pre = RecognisePreTokenizer(tokenizer_);
    if (pre == nullptr) {
      warnings_.push_back(
          "llama.cpp does not know how this tokenizer cuts text into pieces; it will cut it in its default way, and "
          "may "
          "give other tokens");
    }
    metadata_.String("tokenizer.ggml.model", "gpt2");
    metadata_.String("tokenizer.ggml.pre", pre == nullptr ? "default" : pre->name);
    WriteTokens(false);
    ASSIGN_OR_RETURN(const std::vector<Merge> merges, ReadMerges(model));
    std::vector<std::string> lines;
    lines.reserve(merges.size());
    for (const auto& [left, right] : merges) {
      // A space would end the part; byte-level text has U+0120 for it.
      lines.push_back(absl::StrCat(absl::StrReplaceAll(left, {{" ", "\u0120"}}), " ",
                                   absl::StrReplaceAll(right, {{" ", "\u0120"}})));
    }
    metadata_.Strings("tokenizer.ggml.merges", lines);
    return absl::OkStatus();
  }

  absl::Status WriteSentencePiece(const json& model) {
    const std::string model_path = folder_ + "/tokenizer.model";
    if (Exists(model_path)) {
      ASSIGN_OR_RETURN(const std::string contents, ReadFile(model_path));
      const auto pieces = ParseSentencePieceModel(contents);
      if (!pieces.ok()) return WithContext(pieces.status(), model_path);
      for (size_t i = 0; i < std::min(pieces->size(), tokens_.size()); ++i) {
        const Piece& piece = (*pieces)[i];
        // What tokenizer.json made of an id counts; the scores are only here.
        if (tokens_[i].type == TokenType::kNormal) tokens_[i] = {piece.text, piece.type, piece.score};
        if (tokens_[i].text == piece.text && piece.type == TokenType::kUnknown) tokens_[i].type = piece.type;
      }
    } else {
      ASSIGN_OR_RETURN(const std::vector<Merge> merges, ReadMerges(model));
      // What merges first has the best score; what no merge makes is never looked up.
      for (size_t rank = merges.size(); rank-- > 0;) {
        const auto made = ids_.find(merges[rank].first + merges[rank].second);
        if (made != ids_.end() && tokens_[made->second].type == TokenType::kNormal) {
          tokens_[made->second].score = -static_cast<float>(rank) - 1.0F;
        }
      }
      MarkBytesAndUnknown(model);
    }
    metadata_.String("tokenizer.ggml.model", "llama");
    metadata_.String("tokenizer.ggml.pre", "default");
    WriteTokens(true);
    metadata_.Bool("tokenizer.ggml.add_space_prefix", AddsSpacePrefix());
    return absl::OkStatus();
  }

  void MarkBytesAndUnknown(const json& model) {
    for (Token& token : tokens_) {
      if (token.type != TokenType::kNormal || token.text.size() != 6) continue;
      int byte = 0;
      if (absl::StartsWith(token.text, "<0x") && token.text[5] == '>' &&
          absl::SimpleHexAtoi(token.text.substr(3, 2), &byte)) {
        token.type = TokenType::kByte;
      }
    }
    if (const auto unknown = ids_.find(Text(model, "unk_token")); unknown != ids_.end()) {
      tokens_[unknown->second].type = TokenType::kUnknown;
    }
  }

  bool AddsSpacePrefix() const {
    const json* pre = Find(tokenizer_, "pre_tokenizer");
    if (pre != nullptr && Text(*pre, "type") == "Metaspace") {
      return Text(*pre, "prepend_scheme") != "never" && Flag(*pre, "add_prefix_space", true);
    }
    const json* normalizer = Find(tokenizer_, "normalizer");
    const json* list = normalizer == nullptr ? nullptr : Find(*normalizer, "normalizers");
    if (list == nullptr || !list->is_array()) return normalizer != nullptr && Text(*normalizer, "type") == "Prepend";
    return std::any_of(list->begin(), list->end(), [](const json& step) { return Text(step, "type") == "Prepend"; });
  }

  // By text, by config.json's id where there is no text.
  std::optional<int64_t> SpecialId(const std::string& name) const {
    const auto it = ids_.find(TokenText(config_, (name + "_token").c_str()));
    if (it != ids_.end()) return static_cast<int64_t>(it->second);
    const json* id = Find(model_config_, (name + "_token_id").c_str());
    if (id != nullptr && id->is_array() && !id->empty()) id = &(*id)[0];
    if (id == nullptr || !id->is_number_integer()) return std::nullopt;
    const int64_t value = id->get<int64_t>();
    if (value < 0 || static_cast<size_t>(value) >= tokens_.size()) return std::nullopt;
    return value;
  }

  // Which special tokens the post-processor puts around a text, where it is a template.
  void ReadTemplateProcessing(std::string& first, std::string& last, bool& found) const {
    const json* processor = Find(tokenizer_, "post_processor");
    if (processor == nullptr) return;
    std::vector<json> list = {*processor};
    if (const json* inner = Find(*processor, "processors"); inner != nullptr && inner->is_array()) {
      list.assign(inner->begin(), inner->end());
    }
    for (const json& entry : list) {
      const json* single = Find(entry, "single");
      if (Text(entry, "type") != "TemplateProcessing" || single == nullptr || !single->is_array() || single->empty()) {
        continue;
      }
      found = true;
      const auto special = [&](const json& step) {
        const json* token = Find(step, "SpecialToken");
        return token == nullptr ? std::string() : Text(*token, "id");
      };
      if (single->size() > 1) {
        first = special(single->front());
        last = special(single->back());
      }
    }
  }

  void WriteSpecialIds() {
    const auto put = [&](const std::string& key, std::optional<int64_t> id) {
      if (id) metadata_.Uint32(absl::StrCat("tokenizer.ggml.", key, "_token_id"), static_cast<uint32_t>(*id));
    };
    const std::optional<int64_t> bos = SpecialId("bos");
    const std::optional<int64_t> eos = SpecialId("eos");
    put("bos", bos);
    put("eos", eos);
    put("unknown", SpecialId("unk"));
    put("padding", SpecialId("pad"));
    WriteTurnEnds(eos);

    std::string first;
    std::string last;
    bool found = false;
    ReadTemplateProcessing(first, last, found);
    const auto text = [&](std::optional<int64_t> id) { return id ? tokens_[static_cast<size_t>(*id)].text : ""; };
    bool add_bos = !first.empty() && first == text(bos);
    bool add_eos = !last.empty() && last == text(eos);
    // The folder's own flags rule where the tokenizer has no template; llama.cpp's defaults would else.
    if (!found) {
      add_bos = Flag(config_, "add_bos_token", false);
      add_eos = Flag(config_, "add_eos_token", false);
    }
    metadata_.Bool("tokenizer.ggml.add_bos_token", add_bos);
    metadata_.Bool("tokenizer.ggml.add_eos_token", add_eos);
  }

  // Ids that end generation besides eos (generation_config.json): llama.cpp ends on these too.
  void WriteTurnEnds(std::optional<int64_t> eos) {
    const json* ends = Find(generation_, "eos_token_id");
    if (ends == nullptr) ends = Find(model_config_, "eos_token_id");
    if (ends == nullptr) return;
    const char* keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    size_t used = 0;
    for (const json& end : ends->is_array() ? *ends : json::array({*ends})) {
      if (used == std::size(keys) || !end.is_number_integer()) break;
      const int64_t id = end.get<int64_t>();
      if (id < 0 || static_cast<size_t>(id) >= tokens_.size() || id == eos) continue;
      metadata_.Uint32(keys[used++], static_cast<uint32_t>(id));
    }
  }

  absl::Status WriteTemplates() {
    json templates;
    if (Exists(folder_ + "/chat_template.jinja")) {
      ASSIGN_OR_RETURN(const std::string text, ReadFile(folder_ + "/chat_template.jinja"));
      templates = text;
    } else if (const json* inline_template = Find(config_, "chat_template"); inline_template != nullptr) {
      templates = *inline_template;
    } else if (Exists(folder_ + "/chat_template.json")) {
      ASSIGN_OR_RETURN(const json file, ReadJsonFile(folder_ + "/chat_template.json"));
      if (const json* inner = Find(file, "chat_template"); inner != nullptr) templates = *inner;
    }
    if (templates.is_string()) {
      metadata_.String("tokenizer.chat_template", templates.get<std::string>());
    } else if (templates.is_array()) {
      std::vector<std::string> names;
      std::set<std::string> seen;
      for (const json& entry : templates) {
        const std::string name = Text(entry, "name");
        if (name.empty() || !seen.insert(name).second) continue;
        if (name == "default") {
          metadata_.String("tokenizer.chat_template", Text(entry, "template"));
        } else {
          metadata_.String("tokenizer.chat_template." + name, Text(entry, "template"));
          names.push_back(name);
        }
      }
      if (!names.empty()) metadata_.Strings("tokenizer.chat_templates", names);
    }
    return absl::OkStatus();
  }

  const std::string folder_;
  std::string text_;
  json tokenizer_;
  json config_ = json::object();
  json model_config_ = json::object();
  json generation_ = json::object();
  std::vector<Token> tokens_;
  std::unordered_map<std::string, size_t> ids_;
  Metadata& metadata_;
  std::vector<std::string>& warnings_;
};

}  // namespace

absl::Status TokenizerToMetadata(const std::string& folder, int64_t vocab_size, Metadata& metadata,
                                 std::vector<std::string>& warnings) {
  return Converter(folder, vocab_size, metadata, warnings).Convert();
}

}  // namespace retort::gguf
