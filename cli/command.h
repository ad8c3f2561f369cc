// What the verbs of distctl share: global options, exit codes, and how a verb joins the program.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace retort::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;  // wrong arguments, or an invalid job file
inline constexpr int kExitInterrupted = 130;

struct Globals {
  std::string coordinator;  // host:port; empty: DIR/local.json's
  std::string state_dir;    // default ~/.retort
  std::string token_file;   // empty: DIR/token, where there is one
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  bool json = false;
  std::string program;  // argv[0]
};

// Lives as long as the program; verbs keep references to it in their callbacks.
struct Context {
  Globals globals;
  int exit_code = kExitDone;
};

// One for each verb, in cli/verbs/<verb>.cc: adds its subcommand, whose callback sets Context::exit_code.
void AddArtifacts(CLI::App* app, Context* context);
void AddCancel(CLI::App* app, Context* context);
void AddExport(CLI::App* app, Context* context);
void AddList(CLI::App* app, Context* context);
void AddLocal(CLI::App* app, Context* context);
void AddLogs(CLI::App* app, Context* context);
void AddModelVerbs(CLI::App* app, Context* context);
void AddPlan(CLI::App* app, Context* context);
void AddResume(CLI::App* app, Context* context);
void AddStatus(CLI::App* app, Context* context);
void AddStore(CLI::App* app, Context* context);
void AddSubmit(CLI::App* app, Context* context);
void AddValidate(CLI::App* app, Context* context);
void AddTokenize(CLI::App* app, Context* context);
void AddVersion(CLI::App* app, Context* context);
void AddWorkers(CLI::App* app, Context* context);

// Adds `--json` and says where the other global options are described.
CLI::App* AddVerb(CLI::App* app, Context* context, const std::string& name, const std::string& description);

// Prints "distctl: <message>" to stderr and returns the exit code that fits: kExitUsage for kInvalidArgument, else
// kExitFailed.
int Fail(const absl::Status& status);
int FailUsage(absl::string_view message);

// Replaces this process by `<program's folder>/<program> <verb> <flags>`; returns an exit code only when that fails.
int BecomeProgram(const std::string& program, std::string verb, std::vector<std::string> flags);

// One JSON document and a newline to stdout.
void PrintJson(const nlohmann::json& document);

}  // namespace retort::cli
