#include "common/version.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace retort::cli {

void AddVersion(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "version", "Print the version of this program");
  verb->callback([context] {
    const std::string version(kVersion);
    if (context->globals.json) {
      PrintJson({{"version", version}});
    } else {
      std::printf("distctl %s\n", version.c_str());
    }
  });
}

}  // namespace retort::cli
