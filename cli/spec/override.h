// `--set path.to.key=value`: changes a parsed job file before it is checked.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "cli/spec/document.h"

namespace retort::cli {

// Applies one `path.to.key=value` to `root`. The value is YAML ("3", "[stop]", "{min: 1, max: 2}"); a number in the
// path is an index into a list ("dataset.0.path"), the list's length appends. Maps and lists on the way are made. What
// is set keeps
// "--set <argument>" as its position. Errors go to `diagnostics`.
void ApplyOverride(absl::string_view argument, SpecValue* root, Diagnostics* diagnostics);

}  // namespace retort::cli
