// tokenize: texts, conversations and training rows to token ids and labels, and back.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/render/terminal.h"
#include "cli/tokenize/line_reader.h"
#include "cli/tokenize/row.h"
#include "common/file.h"
#include "common/status.h"
#include "model/tokenizer.h"

namespace retort::cli {
namespace {

// Of one turn of reading, working and writing: bounds the memory, whatever the size of the input.
constexpr size_t kBatchLines = 4096;
constexpr size_t kBatchBytes = size_t{8} << 20;
// Lines larger than this are worked on one at a time: a tokenizer takes many times the size of its text.
constexpr size_t kLargeLineBytes = size_t{1} << 20;

struct Flags {
  std::string model;
  std::string input = "-";
  std::string output = "-";
  std::string color = "auto";
  int threads = 0;
  RowOptions row;
};

// A file that is whole at the end or not there; a stream, device or pipe as it comes.
class Output {
 public:
  static absl::StatusOr<Output> Open(const std::string& path) {
    Output output;
    struct stat status {};
    if (path == "-") {
      output.fd_ = STDOUT_FILENO;
    } else if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      output.owned_ = UniqueFd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (!output.owned_.valid()) return absl::InternalError(absl::StrCat(path, ": ", std::strerror(errno)));
      output.fd_ = output.owned_.get();
    } else {
      ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
      output.file_.emplace(std::move(file));
    }
    return output;
  }

  absl::Status Append(const std::string& text) {
    if (file_) return file_->Append(text);
    for (size_t at = 0; at < text.size();) {
      const ssize_t put = write(fd_, text.data() + at, text.size() - at);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return absl::InternalError(absl::StrCat("write: ", std::strerror(errno)));
      at += static_cast<size_t>(put);
    }
    return absl::OkStatus();
  }

  absl::Status Close() { return file_ ? file_->Commit() : absl::OkStatus(); }

 private:
  std::optional<AtomicFile> file_;
  UniqueFd owned_;
  int fd_ = -1;
};

std::vector<RowOutput> RunBatch(const Tokenizer& tokenizer, const std::vector<Line>& lines, const Flags& flags,
                                int threads) {
  std::vector<RowOutput> outputs(lines.size());
  std::atomic<size_t> next{0};
  std::mutex large;
  const auto work = [&] {
    constexpr size_t kStride = 16;
    for (size_t from = next.fetch_add(kStride); from < lines.size(); from = next.fetch_add(kStride)) {
      for (size_t i = from; i < std::min(from + kStride, lines.size()); ++i) {
        std::unique_lock<std::mutex> alone(large, std::defer_lock);
        if (lines[i].text.size() > kLargeLineBytes) alone.lock();
        outputs[i] = RunRow(tokenizer, lines[i], flags.row);
      }
    }
  };
  std::vector<std::thread> workers;
  for (int i = 1; i < threads && static_cast<size_t>(i) < lines.size(); ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  return outputs;
}

absl::StatusOr<int> Tokenize(const Flags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(flags.model));
  UniqueFd file;
  if (flags.input != "-") {
    file = UniqueFd(open(flags.input.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return absl::NotFoundError(absl::StrCat(flags.input, ": ", std::strerror(errno)));
  }
  LineReader reader(flags.input == "-" ? STDIN_FILENO : file.get());
  ASSIGN_OR_RETURN(Output output, Output::Open(flags.output));
  const int threads =
      flags.threads > 0 ? flags.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  int64_t count = 0, failed = 0, first_failed = 0, diverging = 0;
  std::string first_error;
  while (true) {
    ASSIGN_OR_RETURN(const std::vector<Line> lines, reader.Next(kBatchLines, kBatchBytes));
    if (lines.empty()) break;
    std::string text;
    for (const RowOutput& row : RunBatch(*tokenizer, lines, flags, threads)) {
      ++count;
      diverging += row.prompt_diverges ? 1 : 0;
      if (!row.error.empty() && failed++ == 0) {
        first_failed = count;
        first_error = row.error;
      }
      text += row.line;
    }
    RETURN_IF_ERROR(output.Append(text));
  }
  RETURN_IF_ERROR(output.Close());
  if (diverging > 0) {
    std::fprintf(stderr,
                 "distctl: in %lld rows the prompt's tokens are not the beginning of the whole's: a token spans the "
                 "boundary, or the template renders the prompt alone differently; as in TRL the completion begins "
                 "where they part\n",
                 static_cast<long long>(diverging));
  }
  if (failed == 0) return kExitDone;
  std::fprintf(stderr, "distctl: %lld of %lld lines could not be done; the first is line %lld: %s\n",
               static_cast<long long>(failed), static_cast<long long>(count), static_cast<long long>(first_failed),
               first_error.c_str());
  return kExitFailed;
}

int Run(Flags flags) {
  if (flags.row.mask && flags.row.decode) return FailUsage("--mask and --decode exclude each other");
  if (flags.row.skip_special_tokens && !flags.row.decode) return FailUsage("--skip-special-tokens needs --decode");
  const bool to_terminal = flags.output == "-" && isatty(STDOUT_FILENO) == 1;
  flags.row.show = flags.row.mask && (flags.color == "always" || (flags.color == "auto" && to_terminal));
  const char* no_color = std::getenv("NO_COLOR");
  flags.row.color =
      flags.color == "always" ? no_color == nullptr || *no_color == '\0' : DescribeTerminal(STDOUT_FILENO).color;
  const absl::StatusOr<int> code = Tokenize(flags);
  if (code.ok()) return *code;
  std::fprintf(stderr, "distctl: %s\n", std::string(code.status().message()).c_str());
  return kExitFailed;
}

}  // namespace

void AddTokenize(CLI::App* app, Context* context) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      app->add_subcommand("tokenize", "Token ids, labels and rendered chats of a JSONL file, or text of ids");
  verb->fallthrough();
  verb->add_option("--model", flags->model, "Folder with the tokenizer's files")->required();
  verb->add_option("--input", flags->input, "JSONL file; - is the standard input (default)");
  verb->add_option("--output", flags->output, "JSONL file; - is the standard output (default)");
  verb->add_flag("--mask", flags->row.mask,
                 "Add \"labels\" as SFT training sets them; on a terminal show the tokens, the trained ones in colour");
  verb->add_flag("--decode", flags->row.decode, "From \"token_ids\" to \"text\"");
  verb->add_flag("--skip-special-tokens", flags->row.skip_special_tokens, "Leave special tokens out of decoded texts");
  verb->add_option("--threads", flags->threads, "Default: one for each core")->check(CLI::Range(1, 1024));
  verb->add_option(
          "--color", flags->color,
          "With --mask: always shows the tokens in colour, never writes JSON; auto looks whether the output is a "
          "terminal")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  verb->callback([context, flags] { context->exit_code = Run(*flags); });
}

}  // namespace retort::cli
