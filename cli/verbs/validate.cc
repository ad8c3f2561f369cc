#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/job_file_arguments.h"

namespace retort::cli {

void AddValidate(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "validate", "Check a job file and what it names; nothing is run");
  auto arguments = std::make_shared<JobFileArguments>();
  arguments->AddTo(verb);
  verb->callback([context, arguments] {
    JobFile file;
    if (!LoadOrComplain(*arguments, context->globals, &file)) {
      context->exit_code = kExitUsage;
      return;
    }
    const std::vector<std::string> stages = StageNames(file.spec);
    if (context->globals.json) {
      PrintJson({{"valid", true}, {"name", file.spec.name()}, {"stages", stages}});
    } else {
      std::printf("%s: valid; job %s: %s\n", arguments->path.c_str(), file.spec.name().c_str(),
                  absl::StrJoin(stages, " > ").c_str());
    }
  });
}

}  // namespace retort::cli
