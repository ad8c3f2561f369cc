// From the tree of a job file to the protobuf JobSpec, by the schema table.
#pragma once

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "cli/spec/document.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

// Which keys the user wrote, and where. Paths are dotted with list indices: "prompts.0.path".
class Origins {
 public:
  void Record(absl::string_view path, Position position);
  bool Wrote(absl::string_view path) const { return positions_.contains(std::string(path)); }
  // Where `path` stands; where it was left out, where the nearest key above it stands.
  Position Of(absl::string_view path) const;

 private:
  absl::flat_hash_map<std::string, Position> positions_;
};

struct BoundSpec {
  v1::JobSpec spec;
  Origins origins;
};

// Fills every key that is written and every default of the table. Unknown keys, wrong types, impossible values, missing
// keys and what this version does not support go to `diagnostics`, all of them.
BoundSpec BindJobSpec(const SpecValue& root, Diagnostics* diagnostics);

}  // namespace retort::cli
