#include "student/convert_command.h"

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/gguf/convert.h"
#include "model/gguf/file.h"
#include "model/gguf/mixture.h"

namespace retort {
namespace {

struct Arguments {
  std::string source;
  std::string target;
  std::string to;
  std::string type;
  bool overwrite = false;
  int threads = 0;  // 0: as many as cores
};

struct NamedDtype {
  const char* name;
  c10::ScalarType dtype;
};
constexpr NamedDtype kDtypes[] = {
    {"float32", c10::ScalarType::Float}, {"float16", c10::ScalarType::Half}, {"bfloat16", c10::ScalarType::BFloat16}};

template <typename Table>
std::string NamesIn(const Table& table) {
  return absl::StrJoin(table, ", ", [](std::string* out, const auto& row) { out->append(row.name); });
}

absl::Status ToGguf(const Arguments& arguments, const ConvertOptions& options) {
  const std::string type = absl::AsciiStrToLower(arguments.type.empty() ? "q8_0" : arguments.type);
  for (const gguf::NamedFileType& entry : gguf::kFileTypes) {
    if (type == entry.name) return ConvertToGguf(arguments.source, arguments.target, entry.type, options);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--type ", arguments.type, ": a GGUF file's is one of ", NamesIn(gguf::kFileTypes)));
}

absl::Status ToHf(const Arguments& arguments, const ConvertOptions& options) {
  if (arguments.type.empty()) return ConvertToHf(arguments.source, arguments.target, std::nullopt, options);
  for (const NamedDtype& entry : kDtypes) {
    if (arguments.type == entry.name) return ConvertToHf(arguments.source, arguments.target, entry.dtype, options);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--type ", arguments.type, ": a Hugging Face folder's is one of ", NamesIn(kDtypes)));
}

absl::Status Convert(const Arguments& arguments, const ConvertOptions& options) {
  std::error_code error;
  if (!std::filesystem::exists(arguments.source, error)) {
    return absl::NotFoundError(absl::StrCat(arguments.source, " does not exist"));
  }
  const bool is_folder = std::filesystem::is_directory(arguments.source, error);
  const std::string to = arguments.to.empty() ? (is_folder ? "gguf" : "hf") : arguments.to;
  if (is_folder != (to == "gguf")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--to ", to, ": ", arguments.source,
        is_folder ? " is a folder already; name a GGUF file" : " is a file already; name a Hugging Face folder"));
  }
  return is_folder ? ToGguf(arguments, options) : ToHf(arguments, options);
}

}  // namespace

int ConvertCommand(int argc, char** argv) {
  CLI::App app(
      "Converts a Hugging Face folder to a GGUF file that llama.cpp and Ollama run, or a GGUF file to a folder.",
      "distctl convert");
  Arguments arguments;
  app.add_option("SRC", arguments.source, "A Hugging Face folder, or a GGUF file")->required();
  app.add_option("DST", arguments.target, "The GGUF file, or the folder, to be written")->required();
  app.add_option("--to", arguments.to, "gguf or hf (default: what SRC is not)")->check(CLI::IsMember({"gguf", "hf"}));
  app.add_option(
      "--type", arguments.type,
      "To gguf: f32, f16, bf16, q8_0 or q4_k_m (default q8_0). To hf: float32, float16 or bfloat16 (default: "
      "what loses nothing)");
  app.add_flag("--overwrite", arguments.overwrite, "Replace DST");
  app.add_option("--threads", arguments.threads, "Threads (default: as many as cores)")->check(CLI::Range(1, 1024));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "distctl: %s\nRun `distctl convert --help`.\n", error.what());
    return 2;
  }
  at::set_num_threads(arguments.threads > 0 ? arguments.threads
                                            : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  std::vector<std::string> warnings;
  const ConvertOptions options = {.overwrite = arguments.overwrite, .warnings = &warnings};
  const absl::Status status = Convert(arguments, options);
  for (const std::string& warning : warnings) std::fprintf(stderr, "convert: warning: %s\n", warning.c_str());
  if (!status.ok()) {
    std::fprintf(stderr, "convert: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  std::printf("%s\n", arguments.target.c_str());
  return 0;
}

}  // namespace retort
