#include "cli/command.h"

#include <cstdio>
#include <nlohmann/json.hpp>

namespace retort::cli {

CLI::App* AddVerb(CLI::App* app, Context* context, const std::string& name, const std::string& description) {
  CLI::App* verb = app->add_subcommand(name, description);
  verb->fallthrough();
  verb->add_flag("--json", context->globals.json, "Print one JSON document instead of text");
  return verb;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "distctl: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailed;
}

int FailUsage(absl::string_view message) { return Fail(absl::InvalidArgumentError(message)); }

void PrintJson(const nlohmann::json& document) {
  const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::fprintf(stdout, "%s\n", text.c_str());
}

}  // namespace retort::cli
