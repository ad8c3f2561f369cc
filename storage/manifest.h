// What a manifest from outside must be.
#pragma once

#include "absl/status/status.h"
#include "retort/v1/sample_service.pb.h"

namespace retort::storage {

// A manifest is held in memory while it is made and read, about 250 bytes a key.
inline constexpr int kMaxManifestKeys = 4'000'000;

// Checks counts, keys and references. Errors: kInvalidArgument.
absl::Status ValidateManifest(const v1::Manifest& manifest);

}  // namespace retort::storage
