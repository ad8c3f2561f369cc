#include "teacher_gen/model_flags.h"

#include "model/device.h"

namespace retort {

void AddModelFlags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--model", flags.model.model, "Hugging Face model folder, or GGUF file")->required();
  app.add_option("--adapter", flags.model.adapter, "PEFT adapter folder, merged into the weights");
  app.add_option("--dtype", flags.model.dtype, "of the computation; default: bfloat16 on a GPU, float32 on a CPU")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--device", flags.model.device, "default: a GPU when there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--input", flags.input, "JSONL file, or - for standard input")->required();
  app.add_option("--output", flags.output, "JSONL file, or - for standard output")->required();
  app.add_option("--threads", flags.threads, "CPU threads; default: as many as cores")->check(CLI::Range(1, 1024));
}

int ParseModelFlags(CLI::App& app, ModelFlags& flags, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (flags.threads > 0) SetThreads(flags.threads);
  return -1;
}

}  // namespace retort
