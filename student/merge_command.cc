#include "student/merge_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/lora.h"
#include "model/tokenizer_folder.h"
#include "model/weights.h"

namespace retort {
namespace {

struct Arguments {
  std::string model;
  std::string adapter;
  std::string output;
  std::string dtype;
};

absl::Status Merge(const Arguments& arguments) {
  ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(arguments.model, std::nullopt, c10::kCPU));
  if (weights.config.bitsandbytes) {
    std::fprintf(stderr,
                 "distctl export: warning: %s is quantised: the adapter goes into what it stands for, and "
                 "rounding may differ a little\n",
                 arguments.model.c_str());
  }
  ASSIGN_OR_RETURN(const LoraAdapter adapter, LoadAdapter(arguments.adapter, weights.config));
  c10::ScalarType dtype = weights.config.dtype;
  if (arguments.dtype == "float32") dtype = c10::ScalarType::Float;
  if (arguments.dtype == "bfloat16") dtype = c10::ScalarType::BFloat16;
  if (arguments.dtype == "float16") dtype = c10::ScalarType::Half;
  RETURN_IF_ERROR(MergeAdapter(adapter, weights, dtype));
  return SaveModelFolder(weights, dtype, arguments.model, arguments.output,
                         TokenizerFolderOf(arguments.model, arguments.adapter));
}

}  // namespace

int MergeCommand(int argc, char** argv) {
  CLI::App app("Put an adapter into its base: a Hugging Face folder", "distctl export --merged");
  Arguments arguments;
  app.add_option("--model", arguments.model, "Hugging Face folder of the base")->required();
  app.add_option("--adapter", arguments.adapter, "PEFT folder")->required();
  app.add_option("--output", arguments.output, "Folder to make; it must not exist")->required();
  app.add_option("--dtype", arguments.dtype, "float32, bfloat16 or float16 (default: the base's)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const absl::Status status = Merge(arguments); !status.ok()) {
    std::fprintf(stderr, "distctl export: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  std::printf("%s\n", arguments.output.c_str());
  return 0;
}

}  // namespace retort
