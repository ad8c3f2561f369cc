// Reads GGUF files (versions 2 and 3, little-endian): metadata, a table of tensors, then their data.
//
// Nothing in the file is believed: every count, length, offset, type and shape is checked against the bytes that are
// there before it is used, and memory stays within a few times the metadata's own size.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/gguf/types.h"

namespace retort::gguf {

// A metadata value as it stands in the file.
struct Value {
  ValueType type = ValueType::kUint8;  // of the elements, where it is an array
  bool is_array = false;
  uint64_t count = 1;
  absl::string_view bytes;                 // numbers: `count` of them, unaligned; a string: its text
  std::vector<absl::string_view> strings;  // an array of strings
};

struct TensorInfo {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first, as torch has it: the file's own order turned round
  uint64_t offset = 0;         // from the file's beginning
  uint64_t bytes = 0;
};

// A mapped file, or the bytes of one. Whoever keeps tensor data keeps the File. Thread-safe.
class File {
 public:
  // Errors: kNotFound, kInvalidArgument ("<path>: <what is wrong>"), kUnimplemented (a version or layout that is not
  // read).
  static absl::StatusOr<std::shared_ptr<const File>> Open(const std::string& path);
  // The same over memory that outlives the File; `name` stands for the path in errors.
  static absl::StatusOr<std::shared_ptr<const File>> Parse(absl::string_view contents, const std::string& name);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }

  const std::map<std::string, Value, std::less<>>& metadata() const { return metadata_; }
  const Value* Find(absl::string_view key) const;  // null: absent
  bool Has(absl::string_view key) const { return Find(key) != nullptr; }
  // Errors: kNotFound (no such key), kInvalidArgument (another type, or out of range); both name file and key.
  absl::StatusOr<int64_t> Integer(absl::string_view key) const;  // any integer type
  absl::StatusOr<double> Number(absl::string_view key) const;    // any integer or floating type; finite
  absl::StatusOr<bool> Boolean(absl::string_view key) const;
  absl::StatusOr<std::string> String(absl::string_view key) const;  // valid UTF-8
  absl::StatusOr<std::vector<int64_t>> Integers(absl::string_view key) const;
  absl::StatusOr<std::vector<double>> Numbers(absl::string_view key) const;
  absl::StatusOr<std::vector<bool>> Booleans(absl::string_view key) const;
  absl::StatusOr<std::vector<std::string>> Strings(absl::string_view key) const;  // valid UTF-8

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the file's order
  const TensorInfo* FindTensor(absl::string_view name) const;          // null: absent
  absl::string_view Data(const TensorInfo& tensor) const { return contents_.substr(tensor.offset, tensor.bytes); }

 private:
  class Reader;

  File() = default;
  absl::Status Map();
  absl::Status ReadHeader();
  absl::Status ReadMetadata(Reader& reader, uint64_t count);
  absl::Status ReadTensors(Reader& reader, uint64_t count);
  absl::Status PlaceTensors(uint64_t data_begin, uint64_t alignment);
  absl::StatusOr<const Value*> Get(absl::string_view key, bool is_array) const;
  absl::Status WrongType(absl::string_view key, const Value& value, absl::string_view wanted) const;

  std::string path_;
  absl::string_view contents_;
  void* mapping_ = nullptr;
  uint32_t version_ = 0;
  std::map<std::string, Value, std::less<>> metadata_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
};

// Whether a path names a GGUF file: by its ending, or by its first four bytes.
bool IsGgufFile(const std::string& path);

}  // namespace retort::gguf
