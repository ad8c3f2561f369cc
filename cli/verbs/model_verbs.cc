// generate, score and convert: run by retort-teacher and retort-student, which have the torch that distctl does not.
// The flags are passed on as they are; the global options before the verb say nothing to them.
#include <string>

#include "cli/command.h"

namespace retort::cli {
namespace {

void Add(CLI::App* app, Context* context, const std::string& program, const std::string& name,
         const std::string& description) {
  CLI::App* verb = app->add_subcommand(name, description);
  verb->set_help_flag();  // --help is the other program's too
  verb->prefix_command();
  // Flags come back in the order in which they were given.
  verb->callback(
      [context, verb, program, name] { context->exit_code = BecomeProgram(program, name, verb->remaining()); });
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
