#include "model/tokenizer_folder.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/gguf/file.h"
#include "model/gguf/vocab.h"
#include "model/tokenizer_class.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;
constexpr int64_t kMaxTemplateBytes = int64_t{4} << 20;
constexpr int kMaxTemplates = 100;

constexpr const char* kTemplatesFolder = "additional_chat_templates";
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",    "tokenizer_config.json", "special_tokens_map.json",
                                           "added_tokens.json", "tokenizer.model",       "vocab.json",
                                           "merges.txt",        "chat_template.jinja",   "chat_template.json"};

constexpr const char* kNamedTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};

bool IsNamed(const std::string& key) {
  return std::find(std::begin(kNamedTokens), std::end(kNamedTokens), key) != std::end(kNamedTokens);
}

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// A file that may be absent: then an empty object.
absl::StatusOr<json> ReadOptionalObject(const std::string& path) {
  if (!Exists(path)) return json::object();
  ASSIGN_OR_RETURN(json object, ReadJsonFile(path));
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return object;
}

std::string StringOr(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// A token as tokenizers' AddedToken: "<s>" or {"content": "<s>", ...}.
absl::StatusOr<json> Token(const json& value, absl::string_view where) {
  json token = json::object();
  if (value.is_string()) {
    token["content"] = value;
    return token;
  }
  if (!value.is_object() || !value.contains("content") || !value["content"].is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": neither a string nor an object with content"));
  }
  for (const char* key : {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}) {
    if (value.contains(key) && !value[key].is_null()) token[key] = value[key];
  }
  return token;
}

std::string Content(const json& token) { return token["content"].get<std::string>(); }

bool IsPlain(const json& token) { return token.size() == 1; }  // was a string: flags are not known

// The tokens that the configuration names, on their way into the tokenizer.
struct Tokens {
  json named = json::object();             // name -> token
  std::vector<std::string> order;          // of the names
  std::vector<json> extra;                 // extra_special_tokens
  std::map<int64_t, json> by_id;           // added_tokens_decoder
  std::map<std::string, json> by_content;  // the same
};

absl::Status SetNamed(Tokens* tokens, const std::string& key, const json& value, absl::string_view where) {
  if (std::find(tokens->order.begin(), tokens->order.end(), key) == tokens->order.end()) tokens->order.push_back(key);
  if (value.is_null()) {
    tokens->named.erase(key);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(tokens->named[key], Token(value, where));
  return absl::OkStatus();
}

// additional_special_tokens or extra_special_tokens: a list of tokens, or an object of names.
absl::Status AddExtra(Tokens* tokens, const json& value, absl::string_view where) {
  if (value.is_null()) return absl::OkStatus();
  if (value.is_object()) {
    for (const auto& [name, token] : value.items()) RETURN_IF_ERROR(SetNamed(tokens, name, token, where));
    return absl::OkStatus();
  }
  if (!value.is_array()) return absl::InvalidArgumentError(absl::StrCat(where, ": neither a list nor an object"));
  for (const json& item : value) {
    ASSIGN_OR_RETURN(json token, Token(item, where));
    const bool known = std::any_of(tokens->extra.begin(), tokens->extra.end(),
                                   [&](const json& other) { return Content(other) == Content(token); });
    if (!known) tokens->extra.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadConfigTokens(const json& config, const std::string& path, Tokens* tokens) {
  for (const auto& [key, value] : config.items()) {
    const std::string where = absl::StrCat(path, ": ", key);
    if (IsNamed(key)) {
      RETURN_IF_ERROR(SetNamed(tokens, key, value, where));
    } else if (absl::EndsWith(key, "_token") && (value.is_string() || value.is_object())) {
      RETURN_IF_ERROR(SetNamed(tokens, key, value, where));
    }
  }
  const char* extra = config.contains("extra_special_tokens") ? "extra_special_tokens" : "additional_special_tokens";
  return AddExtra(tokens, config.value(extra, json()), absl::StrCat(path, ": ", extra));
}

absl::Status ReadAddedTokensDecoder(const json& decoder, const std::string& path, Tokens* tokens) {
  if (!decoder.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": added_tokens_decoder: no object"));
  for (const auto& [key, value] : decoder.items()) {
    int64_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || !value.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": added_tokens_decoder: \"", key, "\" is no id of a token"));
    }
    ASSIGN_OR_RETURN(json token, Token(value, absl::StrCat(path, ": added_tokens_decoder")));
    tokens->by_content[Content(token)] = token;
    tokens->by_id[id] = std::move(token);
  }
  return absl::OkStatus();
}

// Folders without added_tokens_decoder: special_tokens_map.json has the last word, then come added_tokens.json and
// tokenizer.json's own.
absl::Status ReadOlderFiles(const std::string& folder, const json& file, Tokens* tokens) {
  const std::string map_path = absl::StrCat(folder, "/special_tokens_map.json");
  ASSIGN_OR_RETURN(const json map, ReadOptionalObject(map_path));
  for (const auto& [key, value] : map.items()) {
    const std::string where = absl::StrCat(map_path, ": ", key);
    if (key == "extra_special_tokens" || key == "additional_special_tokens") {
      RETURN_IF_ERROR(AddExtra(tokens, value, where));
    } else if (absl::EndsWith(key, "_token") || IsNamed(key)) {
      RETURN_IF_ERROR(SetNamed(tokens, key, value, where));
      if (value.is_object()) tokens->named[key]["special"] = true;
    }
  }
  const std::string added_path = absl::StrCat(folder, "/added_tokens.json");
  ASSIGN_OR_RETURN(const json added, ReadOptionalObject(added_path));
  for (const auto& [content, id] : added.items()) {
    if (!id.is_number_integer()) {
      return absl::InvalidArgumentError(absl::StrCat(added_path, ": \"", content, "\" has no id"));
    }
    bool special = false;
    for (const auto& [name, token] : tokens->named.items()) special |= IsNamed(name) && Content(token) == content;
    for (const json& token : tokens->extra) special |= Content(token) == content;
    json token = {{"content", content}, {"normalized", !special}, {"special", special}};
    tokens->by_content[content] = token;
    tokens->by_id[id.get<int64_t>()] = std::move(token);
  }
  for (const json& token : file.is_object() ? file.value("added_tokens", json::array()) : json::array()) {
    if (!token.is_object() || !token.value("id", json()).is_number_integer()) continue;  // the library refuses it
    ASSIGN_OR_RETURN(json own, Token(token, absl::StrCat(folder, "/tokenizer.json: added_tokens")));
    tokens->by_content[Content(own)] = own;
    tokens->by_id[token["id"].get<int64_t>()] = std::move(own);
  }
  return absl::OkStatus();
}

json WithFlags(json token) {
  if (!token.contains("special")) token["special"] = false;
  if (!token.contains("normalized")) token["normalized"] = !token["special"].get<bool>();
  return token;
}

// In the order in which TokenizersBackend adds them: added_tokens_decoder by id, named tokens, extra ones.
json TokensToAdd(const Tokens& tokens, const json& known, TokenizerClass chosen) {
  std::set<std::string> contents;
  for (const json& token : known) {
    if (token.is_object() && token.contains("content") && token["content"].is_string()) contents.insert(Content(token));
  }
  std::set<std::string> special;
  for (const auto& [name, token] : tokens.named.items()) special.insert(Content(token));
  json list = json::array();
  const auto add = [&](json token) {
    if (IsPlain(token)) token["special"] = true;
    if (special.count(Content(token)) > 0) token["special"] = true;
    contents.insert(Content(token));
    list.push_back(WithFlags(std::move(token)));
  };
  for (const auto& [id, token] : tokens.by_id) add(WithFlags(token));
  for (const std::string& name : tokens.order) {
    if (tokens.named.contains(name) && contents.count(Content(tokens.named[name])) == 0) add(tokens.named[name]);
  }
  for (const json& token : tokens.extra) {
    if (contents.count(Content(token)) == 0) add(token);
  }
  if (chosen == TokenizerClass::kQwen2) {
    for (const std::string& name : tokens.order) {
      if (tokens.named.contains(name)) {
        list.push_back({{"content", Content(tokens.named[name])}, {"special", true}, {"normalized", false}});
      }
    }
    for (const json& token : tokens.extra) {
      list.push_back({{"content", Content(token)}, {"special", true}, {"normalized", false}});
    }
  }
  return list;
}

absl::Status ReadTemplates(const std::string& folder, const json& config, TokenizerFolder* read) {
  const std::string main = absl::StrCat(folder, "/chat_template.jinja");
  const std::string others = absl::StrCat(folder, "/", kTemplatesFolder);
  std::map<std::string, std::string> files;
  if (Exists(main)) files["default"] = main;
  std::error_code error;
  for (fs::directory_iterator it(others, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::EndsWith(name, ".jinja")) files[std::string(absl::StripSuffix(name, ".jinja"))] = it->path().string();
    if (files.size() > kMaxTemplates) {
      return absl::InvalidArgumentError(absl::StrCat(others, ": more than ", kMaxTemplates, " templates"));
    }
  }
  for (const auto& [name, path] : files) {
    ASSIGN_OR_RETURN(read->named[name], ReadFile(path, kMaxTemplateBytes));
  }
  if (!files.empty()) {
    read->template_source = files.count("default") > 0 ? main : others;
    read->single_template = files.size() == 1 && files.count("default") > 0;
    return absl::OkStatus();
  }
  read->template_source = absl::StrCat(folder, "/tokenizer_config.json: chat_template");
  const json value = config.value("chat_template", json());
  if (value.is_null()) return absl::OkStatus();
  if (value.is_string()) {
    read->named["default"] = value.get<std::string>();
    return absl::OkStatus();
  }
  read->single_template = false;
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(read->template_source, what));
  };
  if (value.is_object()) {
    for (const auto& [name, text] : value.items()) {
      if (!text.is_string()) return wrong(": an entry is no text");
      read->named[name] = text.get<std::string>();
    }
    return absl::OkStatus();
  }
  if (!value.is_array()) return wrong(" is neither a string nor a list");
  for (const json& entry : value) {
    const json name = entry.is_object() ? entry.value("name", json()) : json();
    const json text = entry.is_object() ? entry.value("template", json()) : json();
    if (!name.is_string() || !text.is_string()) return wrong(": an entry is not {\"name\", \"template\"}");
    read->named[name.get<std::string>()] = text.get<std::string>();
  }
  return absl::OkStatus();
}

// merges.txt: "a b" a line, after a comment line.
absl::StatusOr<json> ReadMerges(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenizerBytes));
  json merges = json::array();
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripSuffix(line, "\r");
    if (line.empty() || absl::StartsWith(line, "#version")) continue;
    merges.push_back(std::string(line));
  }
  return merges;
}

// What update_post_processor() makes of add_bos_token and add_eos_token.
json PostProcessor(const json& config, const Tokens& tokens, const json& vocab, const json& added) {
  const auto wanted = [&](const char* flag, const char* token) -> std::string {
    const json value = config.value(flag, json());
    if (!value.is_boolean() || !value.get<bool>() || !tokens.named.contains(token)) return "";
    return Content(tokens.named[token]);
  };
  const auto id_of = [&](const std::string& token) -> int64_t {
    if (vocab.contains(token)) return vocab[token].get<int64_t>();
    int64_t next = static_cast<int64_t>(vocab.size());
    for (const json& other : added) {
      if (Content(other) == token) return next;
      if (!vocab.contains(Content(other))) ++next;
    }
    return next;
  };
  json single = json::array();
  json special = json::object();
  const auto put = [&](const std::string& token) {
    if (token.empty()) return;
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[token] = {{"id", token}, {"ids", json::array({id_of(token)})}, {"tokens", json::array({token})}};
  };
  put(wanted("add_bos_token", "bos_token"));
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  put(wanted("add_eos_token", "eos_token"));
  json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

// As save_pretrained() writes it, beside tokenizer.json, which knows what add_bos_token came to.
json SavedConfig(json config, const Tokens& tokens, const std::string& tokenizer_class) {
  for (const char* key : {"add_bos_token", "add_eos_token", "chat_template", "name_or_path", "special_tokens_map_file",
                          "tokenizer_file", "slow_tokenizer_class", "device_map", "auto_map"}) {
    config.erase(key);
  }
  for (const auto& [name, token] : tokens.named.items()) {
    const json there = config.value(name, json());
    const bool same = there.is_object() && there.value("content", json()) == token["content"];
    if (!same) config[name] = token["content"];
  }
  if (!tokens.extra.empty() && !config.contains("extra_special_tokens") &&
      !config.contains("additional_special_tokens")) {
    for (const json& token : tokens.extra) config["additional_special_tokens"].push_back(token["content"]);
  }
  config["tokenizer_class"] = tokenizer_class;
  return config;
}

}  // namespace

absl::StatusOr<TokenizerFolder> ReadTokenizerFolder(const std::string& folder) {
  std::error_code error;
  if (gguf::IsGgufFile(folder) && !fs::is_directory(folder, error)) {
    ASSIGN_OR_RETURN(const gguf::UnpackedTokenizer unpacked, gguf::UnpackedTokenizer::Create(folder));
    auto read = ReadTokenizerFolder(unpacked.folder());
    if (!read.ok()) return WithContext(read.status(), folder);
    return read;
  }
  const auto in_folder = [&](const char* name) { return absl::StrCat(folder, "/", name); };
  const std::string config_path = in_folder("tokenizer_config.json");
  ASSIGN_OR_RETURN(const json config, ReadOptionalObject(config_path));
  json model_config = json::object();
  // Only its hints are wanted: whether it can be read is for those to say who need it.
  if (auto read = ReadOptionalObject(in_folder("config.json")); read.ok()) model_config = *std::move(read);
  std::string named = StringOr(config, "tokenizer_class");
  if (named.empty()) named = StringOr(model_config, "tokenizer_class");
  const TokenizerClass chosen = ChooseTokenizerClass(named, StringOr(model_config, "model_type"));

  const std::string path = in_folder("tokenizer.json");
  const bool has_file = Exists(path);
  const bool has_parts = Exists(in_folder("vocab.json")) && Exists(in_folder("merges.txt"));
  if (!has_file && !(has_parts && (chosen == TokenizerClass::kQwen2 || chosen == TokenizerClass::kGpt2))) {
    return absl::NotFoundError(absl::StrCat(
        "no tokenizer in ", folder,
        ": tokenizer.json is missing (a folder with only tokenizer.model, or with vocab.json and merges.txt of a class "
        "other than Qwen2Tokenizer and GPT2Tokenizer, is not supported; load the tokenizer with transformers once and "
        "save it)"));
  }
  TokenizerFolder read;
  std::string text;
  json file;
  if (has_file) {
    ASSIGN_OR_RETURN(text, ReadFile(path, kMaxTokenizerBytes));
    file = json::parse(text, nullptr, false);
    if (file.is_discarded() || !file.is_object()) {
      ASSIGN_OR_RETURN(file, ParseJson(text, path));
      if (!file.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
    }
  }

  Tokens tokens;
  tokens.order.assign(std::begin(kNamedTokens), std::end(kNamedTokens));
  const json defaults = DefaultSpecialTokens(chosen);
  for (const auto& [name, token] : defaults.items()) {
    RETURN_IF_ERROR(SetNamed(&tokens, name, token, folder));
  }
  if (file.contains("padding") && file["padding"].is_object() && !config.contains("pad_token")) {
    const json pad = file["padding"].value("pad_token", json());
    if (pad.is_string()) RETURN_IF_ERROR(SetNamed(&tokens, "pad_token", pad, path));
  }
  RETURN_IF_ERROR(ReadConfigTokens(config, config_path, &tokens));
  if (config.contains("added_tokens_decoder")) {
    RETURN_IF_ERROR(ReadAddedTokensDecoder(config["added_tokens_decoder"], config_path, &tokens));
  } else {
    RETURN_IF_ERROR(ReadOlderFiles(folder, file, &tokens));
  }
  for (auto& [name, token] : tokens.named.items()) {
    const auto found = tokens.by_content.find(Content(token));
    if (IsNamed(name) && found != tokens.by_content.end()) token = found->second;
    read.special_tokens[name] = Content(token);
  }
  if (read.special_tokens.is_null()) read.special_tokens = json::object();

  if (chosen == TokenizerClass::kAsFile) {
    read.added_tokens = TokensToAdd(tokens, file.value("added_tokens", json::array()), chosen);
    read.tokenizer_json = std::move(text);
  } else {
    read.added_tokens = TokensToAdd(tokens, json::array(), chosen);
    json vocab, merges, post_processor;
    if (has_file) {
      const json model = file.value("model", json::object());
      if (!model.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": model is no object"));
      vocab = model.value("vocab", json::object());
      merges = model.value("merges", json::array());
      post_processor = file.value("post_processor", json());
    } else {
      ASSIGN_OR_RETURN(vocab, ReadJsonFile(in_folder("vocab.json")));
      if (!vocab.is_object()) return absl::InvalidArgumentError(absl::StrCat(in_folder("vocab.json"), ": no object"));
      ASSIGN_OR_RETURN(merges, ReadMerges(in_folder("merges.txt")));
      post_processor = PostProcessor(config, tokens, vocab, read.added_tokens);
    }
    json built = RebuildTokenizer(chosen, std::move(vocab), std::move(merges), config);
    built["post_processor"] = std::move(post_processor);
    read.tokenizer_json = built.dump(-1, ' ', false, json::error_handler_t::replace);
  }
  RETURN_IF_ERROR(ReadTemplates(folder, config, &read));
  const auto flag = [&](const char* key) {
    const json value = config.value(key, json());
    return value.is_boolean() && value.get<bool>();
  };
  read.split_special_tokens = flag("split_special_tokens");
  const std::string model_type =
      file.contains("model") && file["model"].is_object() ? StringOr(file["model"], "type") : std::string("BPE");
  read.clean_up_spaces =
      flag("clean_up_tokenization_spaces") &&
      (model_type != "BPE" || flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"));
  if (const auto size = model_config.find("vocab_size"); size != model_config.end() && size->is_number_unsigned()) {
    read.model_vocab_size = static_cast<int64_t>(std::min<uint64_t>(size->get<uint64_t>(), INT32_MAX));
  }
  read.config = SavedConfig(config, tokens, SavedTokenizerClass(chosen, named, StringOr(model_config, "model_type")));
  if (const std::string map = in_folder("special_tokens_map.json"); Exists(map)) {
    ASSIGN_OR_RETURN(read.special_tokens_map, ReadFile(map, kMaxTemplateBytes));
  }
  return read;
}

bool HasTokenizer(const std::string& folder) {
  return Exists(folder + "/tokenizer.json") || (Exists(folder + "/vocab.json") && Exists(folder + "/merges.txt"));
}

std::string TokenizerFolderOf(const std::string& model, const std::string& adapter) {
  return !adapter.empty() && HasTokenizer(adapter) ? adapter : model;
}

bool IsTokenizerFile(const std::string& name) {
  return std::find(std::begin(kTokenizerFiles), std::end(kTokenizerFiles), name) != std::end(kTokenizerFiles);
}

absl::Status CopyTokenizerFiles(const std::string& from, const std::string& to) {
  std::error_code error;
  const auto copy = [&](const fs::path& file, const fs::path& target) {
    fs::copy_file(file, target, fs::copy_options::overwrite_existing, error);
    return error ? ErrnoStatus(absl::StrCat("copy ", file.string()), error.value()) : absl::OkStatus();
  };
  for (const char* name : kTokenizerFiles) {
    const fs::path file = fs::path(from) / name;
    if (fs::exists(file, error)) RETURN_IF_ERROR(copy(file, fs::path(to) / name));
  }
  const fs::path templates = fs::path(to) / kTemplatesFolder;
  for (fs::directory_iterator it(fs::path(from) / kTemplatesFolder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() != ".jinja") continue;
    RETURN_IF_ERROR(MakeFolders(templates.string()));
    RETURN_IF_ERROR(copy(it->path(), templates / it->path().filename()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, std::string>> TokenizerFiles(const TokenizerFolder& read,
                                                                  const std::string& tokenizer_json) {
  std::map<std::string, std::string> files = {{"tokenizer.json", tokenizer_json}};
  json config = read.config;
  if (config.contains("added_tokens_decoder")) {
    ASSIGN_OR_RETURN(const json file, ParseJson(tokenizer_json, "tokenizer.json"));
    json decoder = json::object();
    for (json token : file.value("added_tokens", json::array())) {
      const std::string id = token["id"].dump();
      token.erase("id");
      decoder[id] = std::move(token);
    }
    config["added_tokens_decoder"] = std::move(decoder);
  }
  files["tokenizer_config.json"] = config.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  if (!read.special_tokens_map.empty()) files["special_tokens_map.json"] = read.special_tokens_map;
  for (const auto& [name, text] : read.named) {
    if (name.find('/') != std::string::npos || name.empty() || name[0] == '.') {
      return absl::InvalidArgumentError(absl::StrCat(read.template_source, ": the name \"", name, "\" is no file's"));
    }
    files[name == "default" ? "chat_template.jinja" : absl::StrCat(kTemplatesFolder, "/", name, ".jinja")] = text;
  }
  return files;
}

}  // namespace retort
