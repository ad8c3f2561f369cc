#include "model/tokenizer.h"

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <regex>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"
#include "model/tokenizer_ffi/tokenizer_ffi.h"
#include "model/tokenizer_folder.h"
#include "model/training_templates.h"

namespace retort {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kMaxCompiledTemplates = 8;

absl::Status CheckSize(size_t bytes) {
  if (bytes <= kMaxTextBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tokenize: a text of ", bytes, " bytes is over the limit of ",
                                                 kMaxTextBytes, "; split it into several"));
}

// transformers' clean_up_tokenization.
std::string CleanUpSpaces(std::string text) {
  constexpr std::pair<const char*, const char*> kRules[] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) absl::StrReplaceAll({{from, to}}, &text);
  return text;
}

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

// A compiled template and its text.
struct Template {
  explicit Template(std::string source) : source(std::move(source)) {}
  Template(const Template&) = delete;
  Template& operator=(const Template&) = delete;
  ~Template() {
    if (compiled != nullptr) retort_template_free(compiled);
  }

  const std::string source;
  RetortTemplate* compiled = nullptr;
  bool has_generation_blocks = false;
};

// As transformers looks for it: {% generation %}, {%- generation -%}.
bool HasGenerationBlocks(const std::string& source) {
  static const std::regex& pattern = *new std::regex(R"(\{%-?\s*generation\s*-?%\})");
  for (size_t at = source.find("generation"); at != std::string::npos; at = source.find("generation", at + 1)) {
    const size_t open = source.rfind("{%", at);
    if (open != std::string::npos && at - open < 64 &&
        std::regex_search(source.substr(open, at - open + 128), pattern, std::regex_constants::match_continuous)) {
      return true;
    }
  }
  return false;
}

// apply_chat_template's own parameters: a template does not see them.
constexpr const char* kNotVariables[] = {
    "conversation", "messages",       "tokenize",    "padding",          "truncation",
    "max_length",   "return_tensors", "return_dict", "tokenizer_kwargs", "return_assistant_tokens_mask"};

absl::StatusOr<ordered_json> ParseVariables(const ChatOptions& options) {
  if (options.variables_json.empty()) return ordered_json::object();
  ordered_json given = ordered_json::parse(options.variables_json, nullptr, false);
  if (!given.is_object()) return absl::InvalidArgumentError("chat_template_kwargs: not a JSON object");
  for (const char* name : kNotVariables) {
    if (given.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat("chat_template_kwargs: \"", name, "\" is no template variable"));
    }
  }
  for (const char* name : {"tools", "documents"}) {
    if (!given.contains(name) || given[name].is_null()) continue;
    const auto& list = given[name];
    if (!list.is_array() || !std::all_of(list.begin(), list.end(), [](const auto& item) { return item.is_object(); })) {
      return absl::InvalidArgumentError(absl::StrCat("chat_template_kwargs: ", name, " is not a list of objects"));
    }
  }
  return given;
}

class HfTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, const TokenizerOptions& options);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens) const override;
  absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBatch(const std::vector<std::string>& texts,
                                                                bool add_special_tokens) const override;
  absl::StatusOr<MarkedTokens> EncodeMarked(absl::string_view text, bool add_special_tokens,
                                            const std::vector<CharacterSpan>& spans) const override;
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override;
  absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json,
                                                bool add_generation_prompt) const override {
    ChatOptions options;
    options.add_generation_prompt = add_generation_prompt;
    ASSIGN_OR_RETURN(RenderedChat rendered, RenderChat(messages_json, options));
    return std::move(rendered.text);
  }
  absl::StatusOr<RenderedChat> RenderChat(absl::string_view messages_json, const ChatOptions& options) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(retort_tokenizer_vocab_size(tokenizer_.get())); }
  int64_t model_vocab_size() const override { return std::max(vocab_size(), folder_.model_vocab_size); }
  int32_t TokenToId(absl::string_view token) const override {
    return static_cast<int32_t>(retort_tokenizer_token_to_id(tokenizer_.get(), Slice(token)));
  }
  int32_t eos_token_id() const override { return eos_token_id_; }
  std::string eos_token() const override {
    return folder_.special_tokens.contains("eos_token") ? folder_.special_tokens["eos_token"].get<std::string>() : "";
  }
  const TokenAdditions& additions() const override { return additions_; }
  absl::StatusOr<std::map<std::string, std::string>> Files() const override;

 private:
  absl::Status AddTokens(const TokenizerOptions& options);
  absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeSlices(const std::vector<RetortSlice>& texts,
                                                                 bool add_special_tokens) const;
  // `given`: a text, a name or empty.
  absl::StatusOr<std::shared_ptr<const Template>> FindTemplate(const std::string& given, bool has_tools) const;
  absl::StatusOr<std::shared_ptr<const Template>> Compile(const std::string& source, const std::string& where) const;

  std::string path_;
  absl::Time now_;
  TokenizerFolder folder_;
  std::unique_ptr<RetortTokenizer, FreeTokenizer> tokenizer_;
  int32_t eos_token_id_ = -1;
  TokenAdditions additions_;
  mutable absl::Mutex mu_;
  mutable std::deque<std::shared_ptr<const Template>> templates_ ABSL_GUARDED_BY(mu_);  // last used first, few
};

absl::StatusOr<std::unique_ptr<Tokenizer>> HfTokenizer::Load(const std::string& folder,
                                                             const TokenizerOptions& options) {
  auto loaded = std::make_unique<HfTokenizer>();
  loaded->path_ = folder;
  loaded->now_ = options.now;
  ASSIGN_OR_RETURN(loaded->folder_, ReadTokenizerFolder(folder));
  TokenizerFolder& read = loaded->folder_;
  RetortBytes message{};
  RetortTokenizer* tokenizer = nullptr;
  const std::string added = read.added_tokens.dump(-1, ' ', false, json::error_handler_t::replace);
  if (const int32_t code = retort_tokenizer_new(Slice(read.tokenizer_json), Slice(added), read.split_special_tokens,
                                                &tokenizer, &message);
      code != kRetortFfiOk) {
    return absl::InvalidArgumentError(absl::StrCat(folder, "/tokenizer.json: ", Take(message)));
  }
  loaded->tokenizer_.reset(tokenizer);
  read.tokenizer_json = std::string();
  read.added_tokens = json();
  RETURN_IF_ERROR(loaded->AddTokens(options));
  if (const std::string eos = loaded->eos_token(); !eos.empty()) loaded->eos_token_id_ = loaded->TokenToId(eos);
  // A template that cannot be compiled is better known before there is work.
  if (const auto found = read.named.find("default"); found != read.named.end() && !found->second.empty()) {
    RETURN_IF_ERROR(loaded->Compile(found->second, read.template_source).status());
  }
  return loaded;
}

absl::Status HfTokenizer::AddTokens(const TokenizerOptions& options) {
  if (options.add_tokens.empty() && options.add_special_tokens.empty()) return absl::OkStatus();
  const std::string what = absl::StrCat("add tokens to ", path_);
  const auto all_ids = [&]() -> absl::StatusOr<std::vector<int32_t>> {
    RetortIds ids{};
    RetortBytes message{};
    const int32_t code = retort_tokenizer_all_ids(tokenizer_.get(), &ids, &message);
    if (code != kRetortFfiOk) return ToStatus(code, what, message);
    std::vector<int32_t> list(ids.data, ids.data + ids.size);
    retort_ids_free(ids);
    return list;
  };
  ASSIGN_OR_RETURN(additions_.ids_before, all_ids());
  for (const bool special : {false, true}) {
    json tokens = json::array();
    const auto& texts = special ? options.add_special_tokens : options.add_tokens;
    for (const std::string& text : texts) tokens.push_back({{"content", text}, {"special", special}});
    const std::string list = tokens.dump(-1, ' ', false, json::error_handler_t::replace);
    RetortIds ids{}, known{};
    RetortBytes message{};
    const int32_t code = retort_tokenizer_add(tokenizer_.get(), Slice(list), &ids, &known, &message);
    if (code != kRetortFfiOk) return ToStatus(code, what, message);
    for (size_t i = 0; i < texts.size(); ++i) {
      additions_.tokens.push_back({texts[i], static_cast<int32_t>(ids.data[i]), known.data[i] != 0});
    }
    retort_ids_free(ids);
    retort_ids_free(known);
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> after, all_ids());
  if (!after.empty()) additions_.rows = int64_t{after.back()} + 1;
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, std::string>> HfTokenizer::Files() const {
  RetortBytes text{};
  RetortBytes message{};
  const int32_t code = retort_tokenizer_to_json(tokenizer_.get(), &text, &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("save the tokenizer of ", path_), message);
  return TokenizerFiles(folder_, Take(text));
}

absl::StatusOr<std::shared_ptr<const Template>> HfTokenizer::Compile(const std::string& source,
                                                                     const std::string& where) const {
  {
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < templates_.size(); ++i) {
      if (templates_[i]->source != source) continue;
      std::swap(templates_[0], templates_[i]);
      return templates_[0];
    }
  }
  auto compiled = std::make_shared<Template>(source);
  RetortBytes message{};
  const int32_t code = retort_template_new(Slice(source), absl::ToUnixSeconds(now_), &compiled->compiled, &message);
  if (code != kRetortFfiOk) return ToStatus(code, where, message);
  compiled->has_generation_blocks = HasGenerationBlocks(source);
  absl::MutexLock lock(&mu_);
  templates_.push_front(compiled);
  if (templates_.size() > kMaxCompiledTemplates) templates_.pop_back();
  return templates_[0];
}

absl::StatusOr<std::shared_ptr<const Template>> HfTokenizer::FindTemplate(const std::string& given,
                                                                          bool has_tools) const {
  const auto& named = folder_.named;
  if (!given.empty()) {
    const auto found = folder_.single_template ? named.end() : named.find(given);
    if (found != named.end()) return Compile(found->second, absl::StrCat(folder_.template_source, ": ", given));
    return Compile(given, "chat_template");
  }
  if (named.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        path_,
        " has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json; use a "
        "chat model's folder, or add a template"));
  }
  auto found = named.find("default");
  if (has_tools && !folder_.single_template && named.count("tool_use") > 0) found = named.find("tool_use");
  if (found == named.end()) {
    const auto name = [](std::string* out, const auto& entry) { out->append(entry.first); };
    return absl::FailedPreconditionError(absl::StrCat(folder_.template_source,
                                                      ": several templates, none of them named \"default\"; choose one "
                                                      "of ",
                                                      absl::StrJoin(named, ", ", name), " by \"chat_template\""));
  }
  return Compile(found->second, folder_.template_source);
}

absl::StatusOr<std::vector<std::vector<int32_t>>> HfTokenizer::EncodeSlices(const std::vector<RetortSlice>& texts,
                                                                            bool add_special_tokens) const {
  for (const RetortSlice& text : texts) RETURN_IF_ERROR(CheckSize(text.size));
  std::vector<RetortIds> lists(texts.size());
  RetortBytes message{};
  const int32_t code =
      retort_tokenizer_encode(tokenizer_.get(), texts.data(), texts.size(), add_special_tokens, lists.data(), &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("tokenize with ", path_), message);
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
  if (const auto negative = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
      negative != ids.end()) {
    return absl::InvalidArgumentError(absl::StrCat("decode with ", path_, ": ", *negative, " is no token id"));
  }
  const auto* unsigned_ids = reinterpret_cast<const uint32_t*>(ids.data());
  const int32_t code =
      retort_tokenizer_decode(tokenizer_.get(), unsigned_ids, ids.size(), skip_special_tokens, &text, &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("decode with ", path_), message);
  if (folder_.clean_up_spaces) return CleanUpSpaces(Take(text));
  return Take(text);
}

absl::StatusOr<MarkedTokens> HfTokenizer::EncodeMarked(absl::string_view text, bool add_special_tokens,
                                                       const std::vector<CharacterSpan>& spans) const {
  RETURN_IF_ERROR(CheckSize(text.size()));
  std::vector<uint32_t> flat;
  for (const CharacterSpan& span : spans) {
    flat.push_back(span.first);
    flat.push_back(span.last);
  }
  RetortIds ids{}, mask{};
  RetortBytes message{};
  const int32_t code = retort_tokenizer_encode_marked(tokenizer_.get(), Slice(text), add_special_tokens, flat.data(),
                                                      spans.size(), &ids, &mask, &message);
  if (code != kRetortFfiOk) return ToStatus(code, absl::StrCat("tokenize with ", path_), message);
  MarkedTokens tokens;
  tokens.ids.assign(ids.data, ids.data + ids.size);
  tokens.marked.assign(mask.data, mask.data + mask.size);
  retort_ids_free(ids);
  retort_ids_free(mask);
  return tokens;
}

absl::StatusOr<RenderedChat> HfTokenizer::RenderChat(absl::string_view messages_json,
                                                     const ChatOptions& options) const {
  ASSIGN_OR_RETURN(ordered_json given, ParseVariables(options));
  std::string continued;
  if (given.contains("continue_final_message")) {
    const auto& value = given["continue_final_message"];
    if (value.is_string()) continued = value.get<std::string>();
    if (value.is_boolean() && value.get<bool>()) continued = "content";
    if (!value.is_string() && !value.is_boolean() && !value.is_null()) {
      return absl::InvalidArgumentError("continue_final_message: neither true or false nor the name of a field");
    }
    given.erase("continue_final_message");
  }
  std::string chosen = options.chat_template;
  if (given.contains("chat_template")) {
    const auto& value = given["chat_template"];
    if (!value.is_string() && !value.is_null()) return absl::InvalidArgumentError("chat_template: not a text");
    if (value.is_string() && chosen.empty()) chosen = value.get<std::string>();
    given.erase("chat_template");
  }
  ordered_json variables = ordered_json(folder_.special_tokens);
  variables["add_generation_prompt"] = options.add_generation_prompt;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  for (auto& [name, value] : given.items()) variables[name] = std::move(value);
  const auto& prompted = variables["add_generation_prompt"];
  if (!continued.empty() && prompted.is_boolean() && prompted.get<bool>()) {
    return absl::InvalidArgumentError(
        "continue_final_message and add_generation_prompt are not compatible: the first goes on with the last message, "
        "the second begins a new one");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Template> found, FindTemplate(chosen, !variables["tools"].is_null()));
  if (options.for_training && !found->has_generation_blocks) {
    if (const absl::string_view marked = TrainingTemplate(found->source); !marked.empty()) {
      ASSIGN_OR_RETURN(found, Compile(std::string(marked), "chat_template"));
    }
  }
  // The messages pass through unparsed: the template must see their keys in the order in which the user wrote them.
  const std::string variables_json = variables.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  RetortBytes text{};
  RetortIds spans{};
  RetortBytes message{};
  const int32_t code = retort_template_render(found->compiled, Slice(messages_json), Slice(variables_json),
                                              Slice(continued), &text, &spans, &message);
  if (code != kRetortFfiOk) {
    return ToStatus(code, chosen.empty() ? folder_.template_source : std::string("chat_template"), message);
  }
  RenderedChat rendered;
  rendered.text = Take(text);
  rendered.has_generation_blocks = found->has_generation_blocks;
  for (size_t i = 0; i + 1 < spans.size; i += 2) rendered.generated.push_back({spans.data[i], spans.data[i + 1]});
  retort_ids_free(spans);
  return rendered;
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

absl::StatusOr<RenderedChat> Tokenizer::RenderChat(absl::string_view messages_json, const ChatOptions& options) const {
  if (!options.chat_template.empty() || !options.variables_json.empty()) {
    return absl::UnimplementedError("this tokenizer takes no template variables");
  }
  RenderedChat rendered;
  ASSIGN_OR_RETURN(rendered.text, ApplyChatTemplate(messages_json, options.add_generation_prompt));
  return rendered;
}

absl::StatusOr<MarkedTokens> Tokenizer::EncodeMarked(absl::string_view, bool, const std::vector<CharacterSpan>&) const {
  return absl::UnimplementedError("this tokenizer marks no tokens");
}

bool TokenAdditions::any_new() const {
  return std::any_of(tokens.begin(), tokens.end(), [](const Token& token) { return !token.known; });
}

const TokenAdditions& Tokenizer::additions() const {
  static const auto* const kNone = new TokenAdditions;
  return *kNone;
}

absl::StatusOr<std::map<std::string, std::string>> Tokenizer::Files() const {
  return absl::UnimplementedError("this tokenizer has no files");
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& folder, absl::Time now) {
  TokenizerOptions options;
  options.now = now;
  return HfTokenizer::Load(folder, options);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& folder, const TokenizerOptions& options) {
  return HfTokenizer::Load(folder, options);
}

std::string MessagesToJson(const std::vector<ChatMessage>& messages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return list.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace retort
