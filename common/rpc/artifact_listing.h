// What a folder in the artifact store is: a sorted list of (path, blob), named by its hash.
#pragma once

#include <google/protobuf/repeated_field.h>

#include <string>

#include "absl/status/status.h"
#include "retort/v1/artifact_service.pb.h"

namespace retort {

inline constexpr int kMaxArtifactFiles = 100'000;

// Checks a listing from outside: paths valid for JoinBelow, strictly sorted (so none twice), none both a file and a
// folder, hashes and sizes well formed, at most kMaxArtifactFiles. Errors: kInvalidArgument naming the file.
absl::Status ValidateListing(const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files);

// The artifact id: SHA-256, as hex, over the string "retort artifact 1", the number of files and each file's path, hash
// (as length-prefixed fields) and size, in order. The listing must be valid.
std::string ArtifactIdOf(const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files);

// Checks that a blob reference is a SHA-256 in lower-case hex with a size >= 0. Errors: kInvalidArgument.
absl::Status ValidateBlobRef(const v1::BlobRef& blob);

}  // namespace retort
