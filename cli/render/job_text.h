// A job as text: the live progress of --watch, `status`, and the report at the end. Pure functions of the job.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "cli/render/terminal.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/worker.pb.h"

namespace retort::cli {

struct TextOptions {
  Terminal terminal;
  int frame = 0;  // of the spinner
};

// The block that --watch redraws in place: the job, then a line a stage (bar, done/total, rate, time left, loss), below
// it why it waits and what failed. No line is wider than the terminal.
std::vector<std::string> ProgressLines(const v1::Job& job, const TextOptions& options);

// One line for where there is no terminal: "train: 120/400 steps, 3.2/s, 1m 20s left, loss 0.412".
std::string PlainProgress(const v1::Job& job);

// When to print a plain line: on every change of the job's or a stage's state, else every `interval` if anything moved.
class PlainProgressFilter {
 public:
  explicit PlainProgressFilter(absl::Duration interval) : interval_(interval) {}
  // The line to print, if any.
  std::optional<std::string> Update(const v1::Job& job, absl::Time now);

 private:
  const absl::Duration interval_;
  absl::Time last_at_ = absl::InfinitePast();
  std::string last_line_;
  std::string last_states_;
};

// `status`: the progress block, then loss curve, accuracies, failures and artifacts.
std::string StatusText(const v1::Job& job, const TextOptions& options);

// What a finished job comes to: its state, the table of accuracies and the outcomes by cause.
std::string ReportText(const v1::Job& job, const TextOptions& options);

// The table of `distctl workers`.
std::string WorkersText(const std::vector<v1::WorkerStatus>& workers, absl::Time now, const TextOptions& options);

}  // namespace retort::cli
