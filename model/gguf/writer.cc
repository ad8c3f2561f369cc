#include "model/gguf/writer.h"

#include <cstring>

#include "common/check.h"
#include "common/status.h"

namespace retort::gguf {
namespace {

constexpr uint32_t kVersion = 3;

template <typename T>
void Put(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

void PutString(std::string& bytes, absl::string_view text) {
  Put<uint64_t>(bytes, text.size());
  bytes.append(text.data(), text.size());
}

uint64_t Padding(uint64_t bytes) { return (kDefaultAlignment - bytes % kDefaultAlignment) % kDefaultAlignment; }

}  // namespace

void Metadata::Begin(const std::string& key, ValueType type) {
  PutString(bytes_, key);
  Put(bytes_, static_cast<uint32_t>(type));
  ++count_;
}

void Metadata::BeginArray(const std::string& key, ValueType type, uint64_t count) {
  Begin(key, ValueType::kArray);
  Put(bytes_, static_cast<uint32_t>(type));
  Put(bytes_, count);
}

void Metadata::Uint32(const std::string& key, uint32_t value) {
  Begin(key, ValueType::kUint32);
  Put(bytes_, value);
}

void Metadata::Float32(const std::string& key, float value) {
  Begin(key, ValueType::kFloat32);
  Put(bytes_, value);
}

void Metadata::Bool(const std::string& key, bool value) {
  Begin(key, ValueType::kBool);
  Put<uint8_t>(bytes_, value ? 1 : 0);
}

void Metadata::String(const std::string& key, absl::string_view value) {
  Begin(key, ValueType::kString);
  PutString(bytes_, value);
}

void Metadata::Strings(const std::string& key, const std::vector<std::string>& values) {
  BeginArray(key, ValueType::kString, values.size());
  for (const std::string& value : values) PutString(bytes_, value);
}

void Metadata::Int32s(const std::string& key, const std::vector<int32_t>& values) {
  BeginArray(key, ValueType::kInt32, values.size());
  for (const int32_t value : values) Put(bytes_, value);
}

void Metadata::Float32s(const std::string& key, const std::vector<float>& values) {
  BeginArray(key, ValueType::kFloat32, values.size());
  for (const float value : values) Put(bytes_, value);
}

void Metadata::Bools(const std::string& key, const std::vector<bool>& values) {
  BeginArray(key, ValueType::kBool, values.size());
  for (const bool value : values) Put<uint8_t>(bytes_, value ? 1 : 0);
}

int64_t TensorPlan::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

uint64_t TensorPlan::bytes() const {
  const TensorTypeInfo& info = InfoOf(type);
  RETORT_CHECK(!shape.empty() && shape.back() % info.block_elements == 0);
  return static_cast<uint64_t>(elements() / info.block_elements * info.block_bytes);
}

absl::StatusOr<Writer> Writer::Create(const std::string& path, const Metadata& metadata,
                                      std::vector<TensorPlan> tensors) {
  std::string header = "GGUF";
  Put(header, kVersion);
  Put<uint64_t>(header, tensors.size());
  Put<uint64_t>(header, metadata.count());
  header += metadata.bytes();
  uint64_t offset = 0;
  for (const TensorPlan& tensor : tensors) {
    PutString(header, tensor.name);
    Put(header, static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) {
      Put(header, static_cast<uint64_t>(*size));
    }
    Put(header, static_cast<uint32_t>(tensor.type));
    Put(header, offset);
    offset += tensor.bytes() + Padding(tensor.bytes());
  }
  header.append(Padding(header.size()), '\0');
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  RETURN_IF_ERROR(file.Append(header));
  return Writer(std::move(file), std::move(tensors));
}

absl::Status Writer::Append(absl::string_view bytes) {
  RETORT_CHECK(tensor_ < tensors_.size());
  const uint64_t whole = tensors_[tensor_].bytes();
  RETORT_CHECK(bytes.size() <= whole - appended_);
  RETURN_IF_ERROR(file_.Append(bytes));
  appended_ += bytes.size();
  if (appended_ < whole) return absl::OkStatus();
  ++tensor_;
  appended_ = 0;
  return file_.Append(std::string(Padding(whole), '\0'));
}

absl::Status Writer::Commit() {
  RETORT_CHECK(tensor_ == tensors_.size());
  return file_.Commit();
}

}  // namespace retort::gguf
