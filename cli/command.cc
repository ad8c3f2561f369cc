#include "cli/command.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/process.h"

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

int BecomeProgram(const std::string& program, std::string verb, std::vector<std::string> flags) {
  const auto folder = ProgramFolder();
  if (!folder.ok()) return Fail(folder.status());
  std::string path = absl::StrCat(*folder, "/", program);
  std::vector<char*> arguments = {path.data(), verb.data()};
  for (std::string& flag : flags) arguments.push_back(flag.data());
  arguments.push_back(nullptr);
  execv(path.c_str(), arguments.data());
  std::fprintf(stderr, "distctl: cannot run %s: %s; it belongs beside distctl\n", path.c_str(), std::strerror(errno));
  return kExitFailed;
}

void PrintJson(const nlohmann::json& document) {
  const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::fprintf(stdout, "%s\n", text.c_str());
}

}  // namespace retort::cli
