#include "model/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/tokenizer_ffi/tokenizer_ffi.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;
constexpr int64_t kMaxTemplateBytes = int64_t{4} << 20;
constexpr size_t kMaxTextBytes = size_t{256} << 20;

constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

RetortSlice Slice(absl::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

std::string Take(RetortBytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  retort_bytes_free(bytes);
  return text;
}

absl::Status ToStatus(int32_t code, absl::string_view what, RetortBytes error) {
  const std::string text = absl::StrCat(what, ": ", Take(error));
  switch (code) {
    case kRetortFfiInvalid:
      return absl::InvalidArgumentError(text);
    case kRetortFfiExhausted:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::InternalError(text);
  }
}

struct FreeTokenizer {
  void operator()(RetortTokenizer* tokenizer) const { retort_tokenizer_free(tokenizer); }
};
struct FreeTemplate {
  void operator()(RetortTemplate* compiled) const { retort_template_free(compiled); }
};

// A file that may be absent: then an empty object.
absl::StatusOr<json> ReadOptionalObject(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return json::object();
  ASSIGN_OR_RETURN(json object, ReadJsonFile(path));
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return object;
}

// "<s>" or {"content": "<s>", ...}; null counts as absent.
absl::StatusOr<std::string> TokenText(const json& value, absl::string_view where) {
  const json& text = value.is_object() ? value.value("content", json()) : value;
  if (text.is_string()) return text.get<std::string>();
  return absl::InvalidArgumentError(absl::StrCat(where, ": neither a string nor an object with content"));
}

// bos_token, ... as the template sees them.
absl::StatusOr<json> SpecialTokens(const std::string& folder, const json& config) {
  const std::string map_path = absl::StrCat(folder, "/special_tokens_map.json");
  ASSIGN_OR_RETURN(const json map, ReadOptionalObject(map_path));
  json tokens = json::object();
  for (const char* name : kSpecialTokens) {
    const bool in_config = config.contains(name) && !config[name].is_null();
    const json& source = in_config ? config : map;
    if (!source.contains(name) || source[name].is_null()) continue;
    const std::string path = in_config ? absl::StrCat(folder, "/tokenizer_config.json") : map_path;
    ASSIGN_OR_RETURN(tokens[name], TokenText(source[name], absl::StrCat(path, ": ", name)));
  }
  return tokens;
}

struct TemplateSource {
  std::string path;
  std::string text;
};

// chat_template.jinja wins over tokenizer_config.json's chat_template, which is a string or a list of {name, template}.
absl::StatusOr<TemplateSource> FindTemplate(const std::string& folder, const json& config) {
  TemplateSource found;
  found.path = absl::StrCat(folder, "/chat_template.jinja");
  std::error_code error;
  if (fs::exists(found.path, error)) {
    ASSIGN_OR_RETURN(found.text, ReadFile(found.path, kMaxTemplateBytes));
    return found;
  }
  found.path = absl::StrCat(folder, "/tokenizer_config.json: chat_template");
  const json value = config.value("chat_template", json());
  if (value.is_null()) return found;
  if (value.is_string()) {
    found.text = value.get<std::string>();
    return found;
  }
  if (!value.is_array()) return absl::InvalidArgumentError(absl::StrCat(found.path, " is neither a string nor a list"));
  for (const json& entry : value) {
    const json name = entry.is_object() ? entry.value("name", json()) : json();
    const json text = entry.is_object() ? entry.value("template", json()) : json();
    if (!name.is_string() || !text.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(found.path, ": an entry is not {\"name\", \"template\"}"));
    }
    if (name == "default") found.text = text.get<std::string>();
  }
  if (found.text.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(found.path, ": a list without one named \"default\""));
  }
  return found;
}

class HfTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, absl::Time now);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens) const override;
  absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBatch(const std::vector<std::string>& texts,
                                                                bool add_special_tokens) const override;
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override;
  absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json,
                                                bool add_generation_prompt) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(retort_tokenizer_vocab_size(tokenizer_.get())); }
  int32_t TokenToId(absl::string_view token) const override {
    return static_cast<int32_t>(retort_tokenizer_token_to_id(tokenizer_.get(), Slice(token)));
  }
  int32_t eos_token_id() const override { return eos_token_id_; }

 private:
  absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeSlices(const std::vector<RetortSlice>& texts,
                                                                 bool add_special_tokens) const;

  std::string folder_;
  std::unique_ptr<RetortTokenizer, FreeTokenizer> tokenizer_;
  std::string template_path_;
  std::unique_ptr<RetortTemplate, FreeTemplate> template_;  // null: none
  json special_tokens_;
  int32_t eos_token_id_ = -1;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> HfTokenizer::Load(const std::string& folder, absl::Time now) {
  auto loaded = std::make_unique<HfTokenizer>();
  loaded->folder_ = folder;
  const std::string path = absl::StrCat(folder, "/tokenizer.json");
  std::error_code error;
  if (!fs::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("no tokenizer in ", folder,
                                            ": tokenizer.json is missing (folders with only tokenizer.model are not "
                                            "supported; save the tokenizer with transformers once)"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenizerBytes));
  RetortBytes message{};
  RetortTokenizer* tokenizer = nullptr;
  if (const int32_t code = retort_tokenizer_new(Slice(text), &tokenizer, &message); code != kRetortFfiOk) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", Take(message)));
  }
  loaded->tokenizer_.reset(tokenizer);

  ASSIGN_OR_RETURN(const json config, ReadOptionalObject(absl::StrCat(folder, "/tokenizer_config.json")));
  ASSIGN_OR_RETURN(loaded->special_tokens_, SpecialTokens(folder, config));
  if (loaded->special_tokens_.contains("eos_token")) {
    loaded->eos_token_id_ = loaded->TokenToId(loaded->special_tokens_["eos_token"].get<std::string>());
  }
  ASSIGN_OR_RETURN(const TemplateSource source, FindTemplate(folder, config));
  loaded->template_path_ = source.path;
  if (!source.text.empty()) {
    RetortTemplate* compiled = nullptr;
    if (const int32_t code = retort_template_new(Slice(source.text), absl::ToUnixSeconds(now), &compiled, &message);
        code != kRetortFfiOk) {
      return ToStatus(code, source.path, message);
    }
    loaded->template_.reset(compiled);
  }
  return loaded;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> HfTokenizer::EncodeSlices(const std::vector<RetortSlice>& texts,
                                                                            bool add_special_tokens) const {
  for (const RetortSlice& text : texts) {
    if (text.size > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenize: a text of ", text.size, " bytes is over the limit of ", kMaxTextBytes));
    }
  }
  std::vector<RetortIds> lists(texts.size());
  RetortBytes message{};
  const int32_t code =
      retort_tokenizer_encode(tokenizer_.get(), texts.data(), texts.size(), add_special_tokens, lists.data(), &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("tokenize with ", folder_), message);
  std::vector<std::vector<int32_t>> ids;
  ids.reserve(lists.size());
  for (const RetortIds& list : lists) {
    ids.emplace_back(list.data, list.data + list.size);
    retort_ids_free(list);
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> HfTokenizer::Encode(absl::string_view text, bool add_special_tokens) const {
  ASSIGN_OR_RETURN(auto ids, EncodeSlices({Slice(text)}, add_special_tokens));
  return std::move(ids[0]);
}

absl::StatusOr<std::vector<std::vector<int32_t>>> HfTokenizer::EncodeBatch(const std::vector<std::string>& texts,
                                                                           bool add_special_tokens) const {
  if (texts.empty()) return std::vector<std::vector<int32_t>>();
  std::vector<RetortSlice> slices;
  slices.reserve(texts.size());
  for (const std::string& text : texts) slices.push_back(Slice(text));
  return EncodeSlices(slices, add_special_tokens);
}

absl::StatusOr<std::string> HfTokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  RetortBytes text{};
  RetortBytes message{};
  // A negative id becomes one above any vocabulary.
  const auto* unsigned_ids = reinterpret_cast<const uint32_t*>(ids.data());
  const int32_t code =
      retort_tokenizer_decode(tokenizer_.get(), unsigned_ids, ids.size(), skip_special_tokens, &text, &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("decode with ", folder_), message);
  return Take(text);
}

absl::StatusOr<std::string> HfTokenizer::ApplyChatTemplate(absl::string_view messages_json,
                                                           bool add_generation_prompt) const {
  if (template_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        folder_,
        " has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json; use a "
        "chat model's folder, or add a template"));
  }
  // The messages pass through unparsed: the template must see their keys in the order in which the user wrote them.
  json variables = special_tokens_;
  variables["add_generation_prompt"] = add_generation_prompt;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  const std::string variables_json = variables.dump();
  RetortBytes text{};
  RetortBytes message{};
  const int32_t code =
      retort_template_render(template_.get(), Slice(messages_json), Slice(variables_json), &text, &message);
  if (code != kRetortFfiOk) return ToStatus(code, template_path_, message);
  return Take(text);
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> Tokenizer::EncodeBatch(const std::vector<std::string>& texts,
                                                                         bool add_special_tokens) const {
  std::vector<std::vector<int32_t>> lists;
  lists.reserve(texts.size());
  for (const std::string& text : texts) {
    ASSIGN_OR_RETURN(lists.emplace_back(), Encode(text, add_special_tokens));
  }
  return lists;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& folder, absl::Time now) {
  return HfTokenizer::Load(folder, now);
}

std::string MessagesToJson(const std::vector<ChatMessage>& messages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return list.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace retort
