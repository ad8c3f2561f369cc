// Writes GGUF files, version 3: metadata and the table of tensors at once, then tensor by tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/file.h"
#include "model/gguf/types.h"

namespace retort::gguf {

// Keys and values in the order in which they are written. A key is set once.
class Metadata {
 public:
  void Uint32(const std::string& key, uint32_t value);
  void Float32(const std::string& key, float value);
  void Bool(const std::string& key, bool value);
  void String(const std::string& key, absl::string_view value);
  void Strings(const std::string& key, const std::vector<std::string>& values);
  void Int32s(const std::string& key, const std::vector<int32_t>& values);
  void Float32s(const std::string& key, const std::vector<float>& values);
  void Bools(const std::string& key, const std::vector<bool>& values);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void Begin(const std::string& key, ValueType type);
  void BeginArray(const std::string& key, ValueType type, uint64_t count);

  std::string bytes_;
  uint64_t count_ = 0;
};

struct TensorPlan {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first

  int64_t elements() const;
  uint64_t bytes() const;
};

// One thread at a time. What is not committed leaves no file.
class Writer {
 public:
  // Errors: as AtomicFile::Create.
  static absl::StatusOr<Writer> Create(const std::string& path, const Metadata& metadata,
                                       std::vector<TensorPlan> tensors);

  // The next bytes of the tensors' data, which follow each other in the order of Create; a call may hold part of a
  // tensor, never parts of two.
  absl::Status Append(absl::string_view bytes);
  // All bytes of all tensors must have come.
  absl::Status Commit();

 private:
  Writer(AtomicFile file, std::vector<TensorPlan> tensors) : file_(std::move(file)), tensors_(std::move(tensors)) {}

  AtomicFile file_;
  std::vector<TensorPlan> tensors_;
  size_t tensor_ = 0;      // the one whose bytes come next
  uint64_t appended_ = 0;  // of it
};

}  // namespace retort::gguf
