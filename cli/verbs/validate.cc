#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/job_file_arguments.h"
#include "cli/render/terminal.h"

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
      nlohmann::json document = {{"valid", true}, {"name", file.spec.name()}, {"stages", stages}};
      document.update(TrainingTextToJson(file.text));
      PrintJson(document);
    } else {
      std::printf("%s: valid; job %s: %s\n", arguments->path.c_str(), file.spec.name().c_str(),
                  absl::StrJoin(stages, " > ").c_str());
      const std::string sample = SampleText(file.text, DescribeTerminal(STDOUT_FILENO).color);
      if (!sample.empty()) std::printf("\n%s", sample.c_str());
    }
  });
}

}  // namespace retort::cli
