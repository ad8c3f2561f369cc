// Puts GGUF bytes together by hand, sound ones and lying ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "model/gguf/types.h"

namespace retort::gguf {

template <typename T>
std::string Raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string RawString(const std::string& text) { return Raw<uint64_t>(text.size()) + text; }

inline std::string RawType(ValueType type) { return Raw(static_cast<uint32_t>(type)); }

class FileBuilder {
 public:
  FileBuilder& Key(const std::string& key, ValueType type, const std::string& value) {
    keys_.push_back(RawString(key) + RawType(type) + value);
    return *this;
  }
  FileBuilder& String(const std::string& key, const std::string& value) {
    return Key(key, ValueType::kString, RawString(value));
  }
  FileBuilder& Uint32(const std::string& key, uint32_t value) { return Key(key, ValueType::kUint32, Raw(value)); }
  FileBuilder& Array(const std::string& key, ValueType type, uint64_t count, const std::string& elements) {
    return Key(key, ValueType::kArray, RawType(type) + Raw(count) + elements);
  }
  // `sizes` in the file's order: innermost first.
  FileBuilder& Tensor(const std::string& name, std::vector<uint64_t> sizes, uint32_t type, uint64_t offset) {
    std::string entry = RawString(name) + Raw(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) entry += Raw(size);
    tensors_.push_back(entry + Raw(type) + Raw(offset));
    return *this;
  }
  FileBuilder& Data(uint64_t bytes) {
    data_bytes_ = bytes;
    return *this;
  }
  FileBuilder& Version(uint32_t version) {
    version_ = version;
    return *this;
  }
  FileBuilder& Alignment(uint64_t alignment) {
    alignment_ = alignment;
    return *this;
  }
  FileBuilder& ClaimTensors(uint64_t count) {
    tensor_count_ = count;
    return *this;
  }
  FileBuilder& ClaimKeys(uint64_t count) {
    key_count_ = count;
    return *this;
  }

  std::string Build() const {
    std::string bytes = "GGUF" + Raw(version_);
    bytes += Raw(tensor_count_.value_or(tensors_.size()));
    bytes += Raw(key_count_.value_or(keys_.size()));
    for (const std::string& key : keys_) bytes += key;
    for (const std::string& tensor : tensors_) bytes += tensor;
    if (data_bytes_ > 0) bytes.append((alignment_ - bytes.size() % alignment_) % alignment_, '\0');
    return bytes + std::string(data_bytes_, '\1');
  }

 private:
  std::vector<std::string> keys_;
  std::vector<std::string> tensors_;
  uint64_t data_bytes_ = 0;
  uint32_t version_ = 3;
  uint64_t alignment_ = kDefaultAlignment;
  std::optional<uint64_t> tensor_count_;
  std::optional<uint64_t> key_count_;
};

}  // namespace retort::gguf
