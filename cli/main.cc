// distctl: the user's tool.
#include <csignal>
#include <cstdio>
#include <exception>

#include "cli/command.h"

namespace retort::cli {
namespace {

void AddGlobalOptions(CLI::App* app, Globals* globals) {
  const std::string group = "Global options";
  app->add_option("--state-dir", globals->state_dir, "State folder of the local cluster (default ~/.retort)")
      ->envname("RETORT_STATE_DIR")
      ->group(group);
  app->add_option("--coordinator", globals->coordinator, "HOST:PORT of the coordinator (default: the local cluster's)")
      ->envname("RETORT_COORDINATOR")
      ->group(group);
  app->add_option("--token-file", globals->token_file, "Access token (default STATE-DIR/token)")
      ->envname("RETORT_TOKEN_FILE")
      ->group(group);
  app->add_option("--tls-ca", globals->tls_ca, "PEM that the coordinator's certificate is checked against")
      ->group(group);
  app->add_option("--tls-cert", globals->tls_cert, "PEM of this client's certificate")->group(group);
  app->add_option("--tls-key", globals->tls_key, "PEM of its key")->group(group);
}

int Main(int argc, char** argv) {
  Context context;
  context.globals.program = argc > 0 ? argv[0] : "distctl";
  CLI::App app("Distils a reasoning teacher into a small student: submit a job file, watch it, fetch the result.",
               "distctl");
  app.require_subcommand(1);
  app.footer(
      "`distctl VERB --help` describes a verb. Global options may stand before or after it.\n"
      "Exit codes: 0 done; 2 wrong arguments or an invalid job file; 1 anything else; 130 interrupted.");
  AddGlobalOptions(&app, &context.globals);
  AddSubmit(&app, &context);
  AddValidate(&app, &context);
  AddPlan(&app, &context);
  AddList(&app, &context);
  AddStatus(&app, &context);
  AddLogs(&app, &context);
  AddCancel(&app, &context);
  AddResume(&app, &context);
  AddArtifacts(&app, &context);
  AddExport(&app, &context);
  AddWorkers(&app, &context);
  AddStore(&app, &context);
  AddLocal(&app, &context);
  AddModelVerbs(&app, &context);
  AddTokenize(&app, &context);
  AddVersion(&app, &context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "distctl: %s\nRun `distctl --help`, or `distctl VERB --help`.\n", error.what());
    return kExitUsage;
  }
  return context.exit_code;
}

}  // namespace
}  // namespace retort::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  return retort::cli::Main(argc, argv);
}
