// retort-teacher: everything that generates.
#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"
#include "common/log.h"
#include "common/rpc/task_client.h"
#include "model/device.h"
#include "teacher_gen/chat_command.h"
#include "teacher_gen/generate_command.h"
#include "teacher_gen/generate_task.h"
#include "teacher_gen/score_command.h"

int main(int argc, char** argv) {
  retort::OpenCudaIfPresent();
  const absl::string_view verb = argc > 1 ? argv[1] : "";
  if (verb == "task") return retort::RunTask(argc, argv, "teacher", retort::RunGenerateTask);
  retort::InitLogging("teacher");
  if (verb == "generate") return retort::GenerateCommand(argc - 1, argv + 1);
  if (verb == "chat") return retort::ChatCommand(argc - 1, argv + 1);
  if (verb == "score") return retort::ScoreCommand(argc - 1, argv + 1);
  std::fprintf(stderr,
               "usage: retort-teacher generate|score|chat|task ...\n"
               "  generate  goes on from the prompts of a JSONL file\n"
               "  score     log-probabilities of the tokens of a JSONL file\n"
               "  chat      a conversation on the terminal\n"
               "  task      a task of the coordinator; started by the worker daemon\n"
               "Each takes --help.\n");
  return verb == "--help" || verb == "-h" ? 0 : 2;
}
