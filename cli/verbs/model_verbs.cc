// generate, score and convert: run by retort-teacher and retort-student, which have the torch that distctl does not.
// The flags are passed on as they are; the global options before the verb say nothing to them.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cli/command.h"
#include "common/process.h"

namespace retort::cli {
namespace {

// Replaces this process; returns an exit code only when that fails.
int Run(const std::string& other, std::string verb, std::vector<std::string> flags) {
  const auto folder = ProgramFolder();
  if (!folder.ok()) return Fail(folder.status());
  std::string program = *folder + "/" + other;
  std::vector<char*> arguments = {program.data(), verb.data()};
  for (std::string& flag : flags) arguments.push_back(flag.data());
  arguments.push_back(nullptr);
  execv(program.c_str(), arguments.data());
  std::fprintf(stderr, "distctl: cannot run %s: %s; it belongs beside distctl\n", program.c_str(),
               std::strerror(errno));
  return kExitFailed;
}

void Add(CLI::App* app, Context* context, const std::string& program, const std::string& name,
         const std::string& description) {
  CLI::App* verb = app->add_subcommand(name, description);
  verb->set_help_flag();  // --help is the other program's too
  verb->prefix_command();
  // Flags come back in the order in which they were given.
  verb->callback([context, verb, program, name] { context->exit_code = Run(program, name, verb->remaining()); });
}

}  // namespace

void AddModelVerbs(CLI::App* app, Context* context) {
  Add(app, context, "retort-teacher", "generate",
      "Complete the texts of a JSONL file with a model folder; `distctl generate --help`");
  Add(app, context, "retort-teacher", "score",
      "Log-probabilities of the tokens of a JSONL file; `distctl score --help`");
  Add(app, context, "retort-teacher", "chat", "Talk with a model on the terminal; `distctl chat --help`");
  Add(app, context, "retort-student", "convert",
      "A Hugging Face folder to a GGUF file, or back; `distctl convert --help`");
}

}  // namespace retort::cli
