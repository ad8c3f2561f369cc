#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/local/local_cluster.h"
#include "cli/local/supervisor.h"
#include "common/process.h"

namespace retort::cli {
namespace {

struct Arguments {
  int port = 0;
  int cpu_slots = 0;
};

int Up(const Globals& globals, const Arguments& arguments) {
  LocalUpOptions options;
  options.state_dir = StateDir(globals);
  options.port = arguments.port;
  options.cpu_slots = arguments.cpu_slots;
  const auto cluster = LocalUp(options);
  if (!cluster.ok()) return Fail(cluster.status());
  if (globals.json) {
    PrintJson(
        {{"state", cluster->started ? "started" : "running"},
         {"state_dir", options.state_dir},
         {"address", cluster->address},
         {"supervisor", {{"pid", cluster->processes.supervisor_pid}}},
         {"coordinator", {{"pid", cluster->processes.coordinator_pid}, {"port", cluster->processes.coordinator_port}}},
         {"worker", {{"pid", cluster->processes.worker_pid}, {"id", cluster->worker_id}}}});
  } else {
    std::printf("local cluster %s: coordinator at %s, worker with %d CPU slots and %d GPUs; state in %s\n",
                cluster->started ? "started" : "already running", cluster->address.c_str(), cluster->cpu_slots,
                cluster->gpus, options.state_dir.c_str());
  }
  return kExitDone;
}

int Down(const Globals& globals) {
  const std::string state_dir = StateDir(globals);
  const auto ran = LocalDown(state_dir);
  if (!ran.ok()) return Fail(ran.status());
  if (globals.json) {
    PrintJson({{"state", *ran ? "stopped" : "not running"}, {"state_dir", state_dir}});
  } else {
    std::printf(*ran ? "local cluster stopped; `distctl local up` goes on with what is in %s\n"
                     : "no local cluster runs in %s\n",
                state_dir.c_str());
  }
  return kExitDone;
}

int Supervise(const Globals& globals, const Arguments& arguments) {
  const auto bin_dir = ProgramFolder();
  if (!bin_dir.ok()) return Fail(bin_dir.status());
  SupervisorOptions options;
  options.state_dir = StateDir(globals);
  options.bin_dir = *bin_dir;
  options.port = arguments.port;
  options.cpu_slots = arguments.cpu_slots;
  return RunSupervisor(options);
}

void AddOptions(CLI::App* verb, Arguments* arguments) {
  verb->add_option("--port", arguments->port, "Port of the coordinator (default: the one used before, else a free one)")
      ->check(CLI::Range(0, 65535));
  verb->add_option("--cpu-slots", arguments->cpu_slots, "CPU tasks at once (default: the cores, at least 4)")
      ->check(CLI::Range(0, 4096));
}

}  // namespace

void AddLocal(CLI::App* app, Context* context) {
  CLI::App* local = app->add_subcommand("local", "Run a whole cluster on this machine");
  local->require_subcommand(1);
  local->fallthrough();
  auto arguments = std::make_shared<Arguments>();

  CLI::App* up = AddVerb(local, context, "up", "Start coordinator and worker, or say that they run");
  AddOptions(up, arguments.get());
  up->callback([context, arguments] { context->exit_code = Up(context->globals, *arguments); });

  CLI::App* down = AddVerb(local, context, "down", "Stop them; what they know stays in the state folder");
  down->callback([context] { context->exit_code = Down(context->globals); });

  // What `up` starts in the background.
  CLI::App* supervise = local->add_subcommand("supervise", "")->group("");
  supervise->fallthrough();
  AddOptions(supervise, arguments.get());
  supervise->callback([context, arguments] { context->exit_code = Supervise(context->globals, *arguments); });
}

}  // namespace retort::cli
