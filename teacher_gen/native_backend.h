// Samples through our own engine.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/generation/engine.h"
#include "model/tokenizer.h"
#include "teacher_gen/model_loader.h"
#include "teacher_gen/sample_backend.h"

namespace retort {

struct NativeBackendOptions {
  ModelOptions model;
  std::string model_revision;  // of the weights with the adapter
  int64_t batch_size = 32;
};

// Loads the model.
absl::StatusOr<std::unique_ptr<SampleBackend>> MakeNativeBackend(const NativeBackendOptions& options);
// Over what is loaded already.
std::unique_ptr<SampleBackend> MakeNativeBackend(std::unique_ptr<GenerationEngine> engine,
                                                 std::unique_ptr<Tokenizer> tokenizer,
                                                 const NativeBackendOptions& options);

}  // namespace retort
