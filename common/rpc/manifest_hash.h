// What a manifest is called.
#pragma once

#include <string>

#include "retort/v1/sample_service.pb.h"

namespace retort {

// SHA-256, as hex, over: the field "retort manifest 1"; train_count and validation_count; hash (field) and size of the
// train file, then of the validation file; the number of keys; and each key (field of 100 bytes: model revision,
// sampling hash, prompt hash, sample index as 4 bytes big-endian), in order. A field is its length (8 bytes,
// little-endian) and its bytes; numbers are 8 bytes, little-endian.
std::string ManifestHash(const v1::Manifest& manifest);

}  // namespace retort
