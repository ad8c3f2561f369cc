// generate and score: run by retort-teacher, which has the torch that distctl does not. Its flags are passed on as they
// are.
#include "cli/model_verbs.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cli/command.h"
#include "common/process.h"

namespace retort::cli {

bool IsModelVerb(absl::string_view verb) { return verb == "generate" || verb == "score"; }

int RunModelVerb(int argc, char** argv) {
  const auto folder = ProgramFolder();
  if (!folder.ok()) return Fail(folder.status());
  const std::string program = *folder + "/retort-teacher";
  std::vector<char*> arguments(argv, argv + argc);
  arguments[0] = const_cast<char*>(program.c_str());
  arguments.push_back(nullptr);
  execv(program.c_str(), arguments.data());
  std::fprintf(stderr, "distctl: cannot run %s: %s; it belongs beside distctl\n", program.c_str(),
               std::strerror(errno));
  return kExitFailed;
}

void AddModelVerbs(CLI::App* app, Context* context) {
  app->add_subcommand("generate", "Complete the texts of a JSONL file with a model folder; `distctl generate --help`");
  app->add_subcommand("score", "Log-probabilities of the tokens of a JSONL file; `distctl score --help`");
}

}  // namespace retort::cli
