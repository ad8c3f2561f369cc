#include "student/convert_command.h"

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/convert/convert.h"
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

struct NamedFormat {
  const char* name;
  HfFormat format;
};
const NamedFormat kHfFormats[] = {{"float32", {.dtype = c10::ScalarType::Float}},
                                  {"float16", {.dtype = c10::ScalarType::Half}},
                                  {"bfloat16", {.dtype = c10::ScalarType::BFloat16}},
                                  {"nf4", {.quantise = QuantiseOptions{.type = QuantType::kNf4}}},
                                  {"int8", {.quantise = QuantiseOptions{.type = QuantType::kInt8}}}};

template <typename Table>
std::string NamesIn(const Table& table) {
  return absl::StrJoin(table, ", ", [](std::string* out, const auto& row) { out->append(row.name); });
}

template <typename Table>
const auto* FindIn(const Table& table, const std::string& name) {
  const auto row =
      std::find_if(std::begin(table), std::end(table), [&](const auto& entry) { return entry.name == name; });
  return row == std::end(table) ? nullptr : &*row;
}

// What the arguments ask for. kInvalidArgument: they contradict each other or the source.
absl::StatusOr<std::function<absl::Status(const ConvertOptions&)>> Choose(const Arguments& arguments) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(arguments.source, error);
  const std::string to = arguments.to.empty() ? (is_folder ? "gguf" : "hf") : arguments.to;
  if (!is_folder && to == "gguf") {
    return absl::InvalidArgumentError(
        absl::StrCat("--to gguf: ", arguments.source, " is no folder; name a Hugging Face folder"));
  }
  const std::string type = absl::AsciiStrToLower(arguments.type);
  if (to == "gguf") {
    const auto* row = FindIn(gguf::kFileTypes, type.empty() ? "q8_0" : type);
    if (row == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("--type ", arguments.type, ": a GGUF file's is one of ", NamesIn(gguf::kFileTypes)));
    }
    return [&arguments, row](const ConvertOptions& options) {
      return ConvertToGguf(arguments.source, arguments.target, row->type, options);
    };
  }
  const auto* row = FindIn(kHfFormats, type);
  if (row == nullptr && !type.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--type ", arguments.type, ": a Hugging Face folder's is one of ", NamesIn(kHfFormats)));
  }
  return [&arguments, row](const ConvertOptions& options) {
    return ConvertToHf(arguments.source, arguments.target, row == nullptr ? HfFormat{} : row->format, options);
  };
}

}  // namespace

int ConvertCommand(int argc, char** argv) {
  CLI::App app(
      "Converts a Hugging Face folder to a GGUF file that llama.cpp and Ollama run, a GGUF file to a folder, or a "
      "folder "
      "to one of another type.",
      "distctl convert");
  Arguments arguments;
  app.add_option("SRC", arguments.source, "A Hugging Face folder, or a GGUF file")->required();
  app.add_option("DST", arguments.target, "The GGUF file, or the folder, to be written")->required();
  app.add_option("--to", arguments.to, "gguf or hf (default: what SRC is not)")->check(CLI::IsMember({"gguf", "hf"}));
  app.add_option(
      "--type", arguments.type,
      "To gguf: f32, f16, bf16, q8_0 or q4_k_m (default q8_0). To hf: float32, float16, bfloat16, or nf4 or int8 as "
      "bitsandbytes keeps them (default: what loses nothing; from a folder its own)");
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
  std::error_code error;
  if (!std::filesystem::exists(arguments.source, error)) {
    std::fprintf(stderr, "convert: %s does not exist\n", arguments.source.c_str());
    return 1;
  }
  const auto convert = Choose(arguments);
  if (!convert.ok()) {
    std::fprintf(stderr, "convert: %s\n", std::string(convert.status().message()).c_str());
    return 2;
  }
  at::set_num_threads(arguments.threads > 0 ? arguments.threads
                                            : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  std::vector<std::string> warnings;
  const ConvertOptions options = {.overwrite = arguments.overwrite, .warnings = &warnings};
  const absl::Status status = (*convert)(options);
  for (const std::string& warning : warnings) std::fprintf(stderr, "convert: warning: %s\n", warning.c_str());
  if (!status.ok()) {
    std::fprintf(stderr, "convert: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  std::printf("%s\n", arguments.target.c_str());
  return 0;
}

}  // namespace retort
