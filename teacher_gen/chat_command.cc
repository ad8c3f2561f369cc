#include "teacher_gen/chat_command.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "model/device.h"
#include "model/generation/engine.h"
#include "teacher_gen/model_flags.h"
#include "teacher_gen/model_loader.h"
#include "teacher_gen/trace_text.h"

namespace retort {
namespace {

// Set by Ctrl-C: ends the answer that is being written.
std::atomic<bool> interrupted = false;

struct Options {
  ModelOptions model;
  int threads = 0;
  std::string system;
  double temperature = 0.6;
  double top_p = 0.95;
  int64_t max_tokens = 4096;
  uint64_t seed = 0;
};

// How much of `text` is whole characters: a model writes some of them in several tokens.
size_t WholeCharacters(absl::string_view text) {
  constexpr absl::string_view kReplacement = "\xef\xbf\xbd";
  while (absl::EndsWith(text, kReplacement)) text.remove_suffix(kReplacement.size());
  return text.size();
}

class Chat {
 public:
  Chat(const Options& options, GenerationEngine& engine, const Tokenizer& tokenizer)
      : options_(options), engine_(engine), tokenizer_(tokenizer), trace_text_(tokenizer) {
    Clear();
  }

  void Clear() {
    messages_ = nlohmann::ordered_json::array();
    if (!options_.system.empty()) messages_.push_back({{"role", "system"}, {"content", options_.system}});
  }

  // Writes the answer as it comes. A question whose answer failed is forgotten.
  absl::Status Ask(const std::string& question) {
    messages_.push_back({{"role", "user"}, {"content", question}});
    absl::StatusOr<std::string> answer = Answer();
    if (!answer.ok()) {
      messages_.erase(messages_.size() - 1);
      return answer.status();
    }
    messages_.push_back({{"role", "assistant"}, {"content", *std::move(answer)}});
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::string> Answer() {
    const std::string rendered = messages_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    ASSIGN_OR_RETURN(const std::string text, tokenizer_.ApplyChatTemplate(rendered, true));
    ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, tokenizer_.Encode(text, false));
    GenerationRequest request{.id = ++asked_, .prompt = prompt};
    request.sampling = {options_.temperature, options_.top_p, options_.max_tokens, false};
    request.random_key = options_.seed * 1'000'003 + asked_;
    RETURN_IF_ERROR(engine_.Add(std::move(request)));
    interrupted = false;
    std::vector<int32_t> written;
    std::string shown;
    bool ended = false;
    while (!ended) {
      ASSIGN_OR_RETURN(const std::vector<GenerationResult> results, engine_.Step());
      ended = !results.empty();
      const std::vector<GenerationResult> snapshot = ended ? results : engine_.Snapshot();
      if (!snapshot.empty()) written = snapshot[0].token_ids;
      ASSIGN_OR_RETURN(const std::string now, trace_text_.DecodeAfter(prompt, written));
      const size_t whole = ended ? now.size() : WholeCharacters(now);
      if (whole > shown.size()) {
        std::fwrite(now.data() + shown.size(), 1, whole - shown.size(), stdout);
        std::fflush(stdout);
        shown = now.substr(0, whole);
      }
      if (interrupted && !ended) {
        RETURN_IF_ERROR(engine_.Remove(asked_));
        break;
      }
      if (ended && results[0].finish_reason == "length") std::fputs("\n[ended at --max-tokens]", stdout);
    }
    std::fputs("\n", stdout);
    return shown;
  }

  const Options& options_;
  GenerationEngine& engine_;
  const Tokenizer& tokenizer_;
  TraceText trace_text_;
  nlohmann::ordered_json messages_;
  uint64_t asked_ = 0;
};

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options.model));
  EngineOptions engine_options;
  engine_options.max_batch_size = 1;
  ASSIGN_OR_RETURN(auto engine,
                   GenerationEngine::Create(std::move(model.weights), model.compute_dtype, engine_options));
  Chat chat(options, *engine, *model.tokenizer);
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  sigaction(SIGINT, &action, nullptr);  // without SA_RESTART: a prompt that waits ends too
  const bool terminal = isatty(STDIN_FILENO) == 1;
  std::string line;
  while (true) {
    if (terminal) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line)) break;
    const absl::string_view question = absl::StripAsciiWhitespace(line);
    if (question.empty()) continue;
    if (question == "/exit") break;
    if (question == "/clear") {
      chat.Clear();
      continue;
    }
    // What is wrong with one question (too long for the context, say) need not end the conversation.
    if (const absl::Status status = chat.Ask(std::string(question)); absl::IsInvalidArgument(status)) {
      std::fprintf(stderr, "chat: %s\n", std::string(status.message()).c_str());
    } else if (!status.ok()) {
      return status;
    }
  }
  if (terminal) std::fputs("\n", stdout);
  return absl::OkStatus();
}

}  // namespace

int ChatCommand(int argc, char** argv) {
  CLI::App app("Talks with a model. /exit or Ctrl-D ends, /clear begins anew, Ctrl-C ends an answer.", "distctl chat");
  Options options;
  app.add_option("--model", options.model.model, "Hugging Face model folder or GGUF file")->required();
  app.add_option("--adapter", options.model.adapter, "PEFT adapter folder, merged into the weights");
  app.add_option("--dtype", options.model.dtype, "of the computation; default: bfloat16 on a GPU, float32 on a CPU")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--device", options.model.device, "default: a GPU when there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_flag("--load-in-4bit", options.model.load_in_4bit, "keep linear modules in 4 bits (NF4)");
  app.add_flag("--load-in-8bit", options.model.load_in_8bit, "keep linear modules in 8 bits")
      ->excludes("--load-in-4bit");
  app.add_option("--threads", options.threads, "CPU threads; default: as many as cores")->check(CLI::Range(1, 1024));
  app.add_option("--system", options.system, "the conversation's system message");
  app.add_option("--temperature", options.temperature, "0 is greedy")->check(TemperatureCheck())->capture_default_str();
  app.add_option("--top-p", options.top_p, "mass of the nucleus")->check(CLI::Range(1e-9, 1.0))->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "of an answer, at most")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  app.add_option("--seed", options.seed)->check(SeedCheck())->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.threads > 0) SetThreads(options.threads);
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "chat: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace retort
