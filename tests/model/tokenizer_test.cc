#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::unique_ptr<Tokenizer> LoadOrDie(const TemporaryFolder& folder) {
  auto loaded = Tokenizer::Load(folder.path());
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? std::move(*loaded) : nullptr;
}

std::unique_ptr<Tokenizer> WithTemplate(const TemporaryFolder& folder, const json& chat_template) {
  json config = TokenizerGolden()["config"];
  config["chat_template"] = chat_template;
  WriteTokenizer(folder, config);
  return LoadOrDie(folder);
}

absl::StatusOr<std::string> Render(const json& chat_template,
                                   absl::string_view messages = R"([{"role":"user","content":"x"}])") {
  TemporaryFolder folder;
  json config = TokenizerGolden()["config"];
  config["chat_template"] = chat_template;
  WriteTokenizer(folder, config);
  auto tokenizer = Tokenizer::Load(folder.path());
  if (!tokenizer.ok()) return tokenizer.status();
  return (*tokenizer)->ApplyChatTemplate(messages, false);
}

TEST(TokenizerTest, EncodesAndDecodesAsTheReference) {
  TemporaryFolder folder;
  WriteTokenizer(folder, TokenizerGolden()["config"]);
  const auto tokenizer = LoadOrDie(folder);
  ASSERT_NE(tokenizer, nullptr);
  std::vector<std::string> texts;
  for (const json& item : TokenizerGolden()["encode"]) {
    const auto ids = tokenizer->Encode(item["text"].get<std::string>(), item["add_special_tokens"].get<bool>());
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, item["ids"].get<std::vector<int32_t>>()) << item["text"];
    texts.push_back(item["text"].get<std::string>());
  }
  for (const json& item : TokenizerGolden()["decode"]) {
    const auto text =
        tokenizer->Decode(item["ids"].get<std::vector<int32_t>>(), item["skip_special_tokens"].get<bool>());
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, item["text"].get<std::string>());
  }
  const auto batch = tokenizer->EncodeBatch(texts, true);
  ASSERT_TRUE(batch.ok()) << batch.status();
  ASSERT_EQ(batch->size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ((*batch)[i], *tokenizer->Encode(texts[i], true)) << texts[i];
  EXPECT_TRUE(tokenizer->EncodeBatch({}, true)->empty());
}

TEST(TokenizerTest, KnowsItsVocabulary) {
  TemporaryFolder folder;
  WriteTokenizer(folder, TokenizerGolden()["config"]);
  const auto tokenizer = LoadOrDie(folder);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->TokenToId("<|endoftext|>"), 0);
  EXPECT_EQ(tokenizer->eos_token_id(), tokenizer->TokenToId("<|im_end|>"));
  EXPECT_EQ(tokenizer->TokenToId("</think>"), tokenizer->vocab_size() - 1);
  EXPECT_EQ(tokenizer->TokenToId("no such token"), -1);
  for (const int32_t id : {-1, INT32_MIN}) {
    EXPECT_EQ(tokenizer->Decode({0, id}, false).status().code(), absl::StatusCode::kInvalidArgument) << id;
  }
  for (const int32_t id : {static_cast<int32_t>(tokenizer->vocab_size()), INT32_MAX}) {
    EXPECT_EQ(*tokenizer->Decode({0, id}, false), *tokenizer->Decode({0}, false)) << id;
  }
}

TEST(TokenizerTest, RendersTemplatesAsTheReference) {
  for (const json& item : TokenizerGolden()["templates"]) {
    TemporaryFolder folder;
    const auto tokenizer = WithTemplate(folder, item["template"]);
    ASSERT_NE(tokenizer, nullptr) << item["name"];
    for (const json& one : item["cases"]) {
      const auto text = tokenizer->ApplyChatTemplate(one["messages_json"].get<std::string>(),
                                                     one["add_generation_prompt"].get<bool>());
      if (one.contains("text")) {
        ASSERT_TRUE(text.ok()) << item["name"] << " " << one["messages_json"] << ": " << text.status();
        EXPECT_EQ(*text, one["text"].get<std::string>()) << item["name"] << " " << one["messages_json"];
      } else {
        EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument)
            << item["name"] << " " << one["messages_json"];
        if (item["name"] == "raising") {
          EXPECT_THAT(std::string(text.status().message()), HasSubstr(one["error"].get<std::string>()));
        }
      }
    }
  }
}

TEST(TokenizerTest, KeepsTheOrderOfKeys) {
  const auto text = Render("{{ messages[0].a | tojson }}", R"([{"role":"user","content":"","a":{"z":1,"b":2}}])");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, R"({"z": 1, "b": 2})");
}

TEST(TokenizerTest, FindsTheTemplate) {
  TemporaryFolder folder;
  const json named = {{{"name", "tool_use"}, {"template", "tools"}}, {{"name", "default"}, {"template", "list"}}};
  EXPECT_EQ(*WithTemplate(folder, named)->ApplyChatTemplate(R"([{"role":"user"}])", false), "list");
  folder.Write("chat_template.jinja", "file");
  EXPECT_EQ(*LoadOrDie(folder)->ApplyChatTemplate(R"([{"role":"user"}])", false), "file");
}

TEST(TokenizerTest, ReadsSpecialTokensFromTheMapToo) {
  TemporaryFolder folder;
  WriteTokenizer(folder, {{"chat_template", "{{ bos_token }}{{ eos_token }}"}});
  folder.Write("special_tokens_map.json", R"({"eos_token": {"content": "<|eot_id|>"}, "bos_token": null})");
  const auto tokenizer = LoadOrDie(folder);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->eos_token_id(), tokenizer->TokenToId("<|eot_id|>"));
  EXPECT_EQ(*tokenizer->ApplyChatTemplate(R"([{"role":"user"}])", false), "<|eot_id|>");
}

TEST(TokenizerTest, WithoutATemplateOnlyRenderingFails) {
  TemporaryFolder folder;
  WriteTokenizer(folder, json::object());
  const auto tokenizer = LoadOrDie(folder);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->eos_token_id(), -1);
  EXPECT_TRUE(tokenizer->Encode("x", false).ok());
  EXPECT_EQ(tokenizer->ApplyChatTemplate(R"([{"role":"user"}])", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(TokenizerTest, StopsTemplatesThatDoNotEnd) {
  const absl::Status status =
      Render("{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(TokenizerTest, StopsTemplatesThatTakeAllMemory) {
  TemporaryFolder folder;
  const auto tokenizer = WithTemplate(folder,
                                      "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set "
                                      "ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}");
  ASSERT_NE(tokenizer, nullptr);
  absl::Status status = tokenizer->ApplyChatTemplate(R"([{"role":"user"}])", false).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes of memory"));
  status = tokenizer->ApplyChatTemplate(R"([{"role":"user"}])", false).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("not run again"));
  EXPECT_TRUE(tokenizer->Encode("still there", false).ok());
}

TEST(TokenizerTest, ThePresentIsWhatTheCallerSays) {
  TemporaryFolder folder;
  json config = TokenizerGolden()["config"];
  config["chat_template"] = "{{ strftime_now('%d %b %Y %H:%M') }}";
  WriteTokenizer(folder, config);
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_EQ(*(*Tokenizer::Load(folder.path(), now))->ApplyChatTemplate(R"([{"role":"user"}])", false),
            "14 Nov 2023 22:13");
  EXPECT_FALSE(Tokenizer::Load(folder.path(), absl::InfiniteFuture()).ok());
}

TEST(TokenizerTest, RefusesBadTemplatesAndMessages) {
  const struct {
    json chat_template;
    const char* messages;
  } cases[] = {
      {"{% for m in messages %}", R"([{"role":"user"}])"},
      {"{{ raise_exception('no') }}", R"([{"role":"user"}])"},
      {"{{ messages[0].a.b.c }}", R"([{"role":"user"}])"},
      {"{{ unknown_function() }}", R"([{"role":"user"}])"},
      {"{{ 'x' | no_such_filter }}", R"([{"role":"user"}])"},
      {"{% include 'other' %}", R"([{"role":"user"}])"},
      {"{{ strftime_now('%Q%!') }}", R"([{"role":"user"}])"},
      {"{{ " + std::string(20000, '(') + "1 }}", R"([{"role":"user"}])"},
      {"{{ " + std::string(20000, '[') + " }}", R"([{"role":"user"}])"},
      {"ok", "[]"},
      {"ok", "{}"},
      {"ok", "not json"},
      {"ok", "[{\"role\":\"\\ud800\"}]"},
      {"ok", "[\"\xff\"]"},
      {7, "[{}]"},
      {json::array({7}), "[{}]"},
  };
  for (const auto& [chat_template, messages] : cases) {
    EXPECT_EQ(Render(chat_template, messages).status().code(), absl::StatusCode::kInvalidArgument)
        << chat_template.dump().substr(0, 80) << " " << messages;
  }
  for (const char* endless : {"{{ 'a' * 100000000 * 1000 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"}) {
    EXPECT_EQ(Render(endless).status().code(), absl::StatusCode::kResourceExhausted) << endless;
  }
  const json unnamed = json::array({{{"name", "other"}, {"template", "x"}}});
  EXPECT_EQ(Render(unnamed).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(TokenizerTest, BearsValuesNestedDeep) {
  const auto repeated = [](const std::string& step) {
    return "{% set ns = namespace(x=[]) %}{% for a in range(300) %}{% for b in range(300) %}" + step +
           "{% endfor %}{% endfor %}";
  };
  for (const char* step :
       {"{% set ns.x = [ns.x] %}", "{% set ns.x = {1: (ns.x,)} %}", "{% set ns.x = [ns.x] | map('list') %}",
        "{% set p = ns.x %}{% macro f() %}{% endmacro %}{% set ns.x = f %}"}) {
    const auto text = Render(repeated(step) + "ok");
    ASSERT_TRUE(text.ok()) << step << text.status();
    EXPECT_EQ(*text, "ok") << step;
  }
  const std::string nested = repeated("{% set ns.x = [ns.x] %}");
  std::string sum = "{{ 1", links = "{{ x";
  for (int i = 0; i < 30000; ++i) {
    sum += "+1";
    links += ".a";
  }
  const std::vector<std::string> endless = {nested + "{{ ns.x }}",
                                            nested + "{{ ns.x == ns.x }}",
                                            nested + "{{ ns.x | tojson }}",
                                            "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
                                            sum + " }}",
                                            links + " }}"};
  for (const std::string& source : endless) {
    EXPECT_EQ(Render(source).status().code(), absl::StatusCode::kInvalidArgument) << source.substr(0, 200);
  }
}

TEST(TokenizerTest, RefusesBadFiles) {
  const std::string good = TokenizerGolden()["tokenizer"].dump();
  const std::pair<const char*, std::string> files[] = {
      {"tokenizer.json", ""},
      {"tokenizer.json", "null"},
      {"tokenizer.json", "[]"},
      {"tokenizer.json", "{}"},
      {"tokenizer.json", good.substr(0, good.size() / 2)},
      {"tokenizer.json", std::string(100000, '[')},
      {"tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})"},
      {"tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}})"},
      {"tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":99999999999},"merges":[]}})"},
      {"tokenizer.json", R"({"model":{"type":"Evil","vocab":{}}})"},
      {"tokenizer.json",
       R"({"model":{"type":"BPE","vocab":{},"merges":[]},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false}})"},
      {"tokenizer.json", "\xff\xfe\x00"},
      {"tokenizer_config.json", ""},
      {"tokenizer_config.json", "[]"},
      {"tokenizer_config.json", "{\"eos_token\": 7}"},
      {"tokenizer_config.json", "{\"eos_token\": {\"content\": []}}"},
      {"tokenizer_config.json", std::string(100000, '{')},
      {"special_tokens_map.json", "7"},
      {"special_tokens_map.json", "{\"bos_token\": [\"a\"]}"},
      {"chat_template.jinja", "{{ "},
      {"chat_template.jinja", "\xff"},
  };
  for (const auto& [name, contents] : files) {
    TemporaryFolder folder;
    WriteTokenizer(folder, json::object());
    folder.Write(name, contents);
    const auto loaded = Tokenizer::Load(folder.path());
    ASSERT_FALSE(loaded.ok()) << name << ": " << contents.substr(0, 80);
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << loaded.status();
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(name));
  }
  TemporaryFolder empty;
  EXPECT_EQ(Tokenizer::Load(empty.path()).status().code(), absl::StatusCode::kNotFound);
  TemporaryFolder large;
  WriteTokenizer(large, json::object());
  large.Write("chat_template.jinja", std::string((4 << 20) + 1, 'x'));
  EXPECT_EQ(Tokenizer::Load(large.path()).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(TokenizerTest, ServesSeveralThreads) {
  TemporaryFolder folder;
  const auto tokenizer = WithTemplate(folder, TokenizerGolden()["templates"][0]["template"]);
  ASSERT_NE(tokenizer, nullptr);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const std::string word(static_cast<size_t>(i) + 1, 'w');
      for (int round = 0; round < 50; ++round) {
        const auto text = tokenizer->ApplyChatTemplate(MessagesToJson({{"user", word}}), true);
        ASSERT_TRUE(text.ok());
        EXPECT_EQ(*text, "<|im_start|>user\n" + word + "<|im_end|>\n<|im_start|>assistant\n");
        EXPECT_EQ(*tokenizer->Decode(*tokenizer->Encode(*text, false), false), *text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace retort
