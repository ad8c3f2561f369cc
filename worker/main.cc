// retort-worker: the daemon that runs tasks on a machine.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "common/log.h"
#include "common/process.h"
#include "common/version.h"
#include "spdlog/spdlog.h"
#include "worker/daemon.h"

int main(int argc, char** argv) {
  retort::worker::DaemonOptions options;
  CLI::App app(
      "Runs Retort's tasks on this machine: registers what it offers, starts and stops task processes, sends their "
      "logs.",
      "retort-worker");
  app.set_version_flag("--version", std::string(retort::kVersion));
  app.add_option("--state-dir", options.state_dir, "Folder for its identity, its tasks' work and its cache")
      ->required();
  app.add_option("--coordinator", options.channel.address, "HOST:PORT of the coordinator")->required();
  app.add_option("--token-file", options.channel.token_file, "File with the access token, mode 0600");
  app.add_option("--tls-ca", options.channel.tls_ca, "PEM that the coordinator's certificate is checked against");
  app.add_option("--tls-cert", options.channel.tls_cert, "PEM of this worker's certificate");
  app.add_option("--tls-key", options.channel.tls_key, "PEM of its key");
  app.add_option("--cpu-slots", options.cpu_slots, "CPU tasks at once (default: the cores, at least 4)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--bin-dir", options.bin_folder, "Folder of the task programs (default: this program's)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }

  retort::InitLogging("worker");
  if (options.bin_folder.empty()) {
    const auto folder = retort::ProgramFolder();
    if (!folder.ok()) {
      spdlog::error("worker_failed error=\"{}\"", folder.status().ToString());
      return 1;
    }
    options.bin_folder = *folder;
  }
  const absl::Status status = retort::worker::RunDaemon(options);
  if (status.ok()) return 0;
  spdlog::error("worker_failed error=\"{}\"", status.ToString());
  std::fprintf(stderr, "retort-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}
