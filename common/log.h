// Process-wide logging: one line per state change, "key=value", to stderr.
#pragma once

#include <spdlog/spdlog.h>

#include "absl/strings/string_view.h"

namespace retort {

// Sets the pattern ("2026-01-31T12:00:00.123Z I role message") and the level from RETORT_LOG_LEVEL (trace, debug, info,
// warn, error; default info). Call once at the start of main. Log with spdlog::info("job_state job_id={} from={}
// to={}", ...).
void InitLogging(absl::string_view role);

}  // namespace retort
