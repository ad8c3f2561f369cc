#include "model/gguf/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "common/text.h"

namespace retort::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is used as it lies in the file");

// Far above what any model has; they bound memory where a file lies.
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 18;
constexpr uint64_t kMaxStrings = 1 << 23;  // in all arrays together
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 256;
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kMaxAlignment = 1 << 20;

std::string Shown(absl::string_view text) { return absl::StrCat("\"", ValidUtf8(text, 100), "\""); }

template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

bool IsInteger(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kUint16:
    case ValueType::kInt16:
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kUint64:
    case ValueType::kInt64:
      return true;
    default:
      return false;
  }
}

// False: above what int64 holds.
bool LoadInteger(ValueType type, const char* bytes, int64_t& value) {
  switch (type) {
    case ValueType::kUint8:
      value = Load<uint8_t>(bytes);
      return true;
    case ValueType::kInt8:
      value = int64_t{Load<int8_t>(bytes)};  // NOLINT(bugprone-signed-char-misuse): a number, not a character
      return true;
    case ValueType::kUint16:
      value = Load<uint16_t>(bytes);
      return true;
    case ValueType::kInt16:
      value = Load<int16_t>(bytes);
      return true;
    case ValueType::kUint32:
      value = Load<uint32_t>(bytes);
      return true;
    case ValueType::kInt32:
      value = Load<int32_t>(bytes);
      return true;
    case ValueType::kUint64:
      value = static_cast<int64_t>(Load<uint64_t>(bytes));
      return value >= 0;
    case ValueType::kInt64:
      value = Load<int64_t>(bytes);
      return true;
    default:
      return false;
  }
}

bool LoadNumber(ValueType type, const char* bytes, double& value) {
  if (type == ValueType::kFloat32) {
    value = Load<float>(bytes);
  } else if (type == ValueType::kFloat64) {
    value = Load<double>(bytes);
  } else {
    int64_t integer = 0;
    if (!LoadInteger(type, bytes, integer)) return false;
    value = static_cast<double>(integer);
  }
  return std::isfinite(value);
}

bool IsNumber(ValueType type) { return IsInteger(type) || type == ValueType::kFloat32 || type == ValueType::kFloat64; }

bool IsValidUtf8(absl::string_view text) { return ValidUtf8(text, text.size()) == text; }

}  // namespace

// A cursor that never leaves the contents.
class File::Reader {
 public:
  explicit Reader(absl::string_view contents) : contents_(contents) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return contents_.size() - position_; }

  absl::StatusOr<absl::string_view> Bytes(uint64_t count, absl::string_view what) {
    if (count > left()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " at byte ", position_, " needs ", count, " bytes, ", left(), " are left in the file"));
    }
    const absl::string_view bytes = contents_.substr(position_, count);
    position_ += count;
    return bytes;
  }

  template <typename T>
  absl::StatusOr<T> Number(absl::string_view what) {
    ASSIGN_OR_RETURN(const absl::string_view bytes, Bytes(sizeof(T), what));
    return Load<T>(bytes.data());
  }

  absl::StatusOr<absl::string_view> String(uint64_t max_bytes, absl::string_view what) {
    ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(absl::StrCat(what, "'s length")));
    if (size > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " at byte ", position_, " claims ", size, " bytes; the limit is ", max_bytes));
    }
    return Bytes(size, what);
  }

  absl::StatusOr<Value> Metadata(uint64_t& strings_left) {
    Value value;
    ASSIGN_OR_RETURN(uint32_t type, Number<uint32_t>("type"));
    value.is_array = static_cast<ValueType>(type) == ValueType::kArray;
    if (value.is_array) {
      ASSIGN_OR_RETURN(type, Number<uint32_t>("element type"));
      ASSIGN_OR_RETURN(value.count, Number<uint64_t>("element count"));
    }
    value.type = static_cast<ValueType>(type);
    if (value.type == ValueType::kArray) {
      return absl::UnimplementedError("is an array of arrays, which no model that is read here has");
    }
    if (value.type != ValueType::kString) {
      const uint64_t bytes = BytesOf(value.type);
      if (bytes == 0) return absl::InvalidArgumentError(absl::StrCat("has type ", type, ", which does not exist"));
      if (value.count > left() / bytes) {
        return absl::InvalidArgumentError(absl::StrCat("claims ", value.count, " elements of ", bytes, " bytes, ",
                                                       left(), " bytes are left in the file"));
      }
      ASSIGN_OR_RETURN(value.bytes, Bytes(value.count * bytes, "value"));
      return value;
    }
    if (!value.is_array) {
      ASSIGN_OR_RETURN(value.bytes, String(std::numeric_limits<int64_t>::max(), "string"));
      return value;
    }
    // Each string has a length of 8 bytes at least.
    if (value.count > left() / sizeof(uint64_t)) {
      return absl::InvalidArgumentError(
          absl::StrCat("claims ", value.count, " strings, ", left(), " bytes are left in the file"));
    }
    if (value.count > strings_left) {
      return absl::InvalidArgumentError(absl::StrCat("makes more than ", kMaxStrings, " strings in all arrays"));
    }
    strings_left -= value.count;
    value.strings.reserve(value.count);
    for (uint64_t i = 0; i < value.count; ++i) {
      ASSIGN_OR_RETURN(const absl::string_view text, String(std::numeric_limits<int64_t>::max(), "string"));
      value.strings.push_back(text);
    }
    return value;
  }

 private:
  const absl::string_view contents_;
  uint64_t position_ = 0;
};

File::~File() {
  if (mapping_ != nullptr) munmap(mapping_, contents_.size());
}

absl::Status File::Map() {
  UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("stat", errno);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError("not a regular file");
  if (info.st_size == 0) return absl::InvalidArgumentError("is empty");
  const auto size = static_cast<size_t>(info.st_size);
  void* address = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return ErrnoStatus("mmap", errno);
  mapping_ = address;
  contents_ = {static_cast<const char*>(address), size};
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const File>> File::Open(const std::string& path) {
  std::shared_ptr<File> file(new File());
  file->path_ = path;
  if (const absl::Status status = file->Map(); !status.ok()) return WithContext(status, path);
  if (const absl::Status status = file->ReadHeader(); !status.ok()) return WithContext(status, path);
  return file;
}

absl::StatusOr<std::shared_ptr<const File>> File::Parse(absl::string_view contents, const std::string& name) {
  std::shared_ptr<File> file(new File());
  file->path_ = name;
  file->contents_ = contents;
  if (const absl::Status status = file->ReadHeader(); !status.ok()) return WithContext(status, name);
  return file;
}

absl::Status File::ReadHeader() {
  Reader reader(contents_);
  ASSIGN_OR_RETURN(const absl::string_view magic, reader.Bytes(4, "the magic number"));
  if (magic != "GGUF") return absl::InvalidArgumentError("does not begin with \"GGUF\": not a GGUF file");
  ASSIGN_OR_RETURN(version_, reader.Number<uint32_t>("the version"));
  if (version_ != 2 && version_ != 3) {
    const bool big_endian = version_ == 0x02000000 || version_ == 0x03000000;
    return absl::UnimplementedError(big_endian
                                        ? std::string("is big-endian; convert it with gguf-py's gguf-convert-endian")
                                        : absl::StrCat("has version ", version_, "; versions 2 and 3 are read"));
  }
  ASSIGN_OR_RETURN(const uint64_t tensor_count, reader.Number<uint64_t>("the count of tensors"));
  ASSIGN_OR_RETURN(const uint64_t key_count, reader.Number<uint64_t>("the count of metadata keys"));
  RETURN_IF_ERROR(ReadMetadata(reader, key_count));
  if (const auto parts = Integer("split.count"); parts.ok() && *parts > 1) {
    return absl::UnimplementedError(
        absl::StrCat("is one of ", *parts, " parts; join them first (llama-gguf-split --merge)"));
  }
  uint64_t alignment = kDefaultAlignment;
  if (Has("general.alignment")) {
    const auto given = Integer("general.alignment");
    if (!given.ok() || *given < 1 || static_cast<uint64_t>(*given) > kMaxAlignment ||
        !std::has_single_bit(static_cast<uint64_t>(*given))) {
      return absl::InvalidArgumentError(absl::StrCat("general.alignment is no power of two from 1 to ", kMaxAlignment));
    }
    alignment = static_cast<uint64_t>(*given);
  }
  RETURN_IF_ERROR(ReadTensors(reader, tensor_count));
  return PlaceTensors((reader.position() + alignment - 1) / alignment * alignment, alignment);
}

absl::Status File::ReadMetadata(Reader& reader, uint64_t count) {
  // A key takes 8 bytes of length, 4 of type and a value of at least one.
  if (count > kMaxKeys || count > reader.left() / 13) {
    return absl::InvalidArgumentError(absl::StrCat("claims ", count, " metadata keys in ", reader.left(),
                                                   " bytes (at most ", kMaxKeys, " are read)"));
  }
  uint64_t strings_left = kMaxStrings;
  for (uint64_t i = 0; i < count; ++i) {
    const auto key = reader.String(kMaxKeyBytes, absl::StrCat("metadata key ", i));
    if (!key.ok()) return key.status();
    if (key->empty() || !IsValidUtf8(*key)) {
      return absl::InvalidArgumentError(absl::StrCat("metadata key ", i, " is empty or no UTF-8"));
    }
    auto value = reader.Metadata(strings_left);
    if (!value.ok()) return WithContext(value.status(), absl::StrCat("metadata key ", Shown(*key)));
    if (!metadata_.emplace(std::string(*key), *std::move(value)).second) {
      return absl::InvalidArgumentError(absl::StrCat("metadata key ", Shown(*key), " stands twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status File::ReadTensors(Reader& reader, uint64_t count) {
  // An entry takes a name's length and a byte of it, a rank, one size, type and offset.
  if (count > kMaxTensors || count > reader.left() / 33) {
    return absl::InvalidArgumentError(
        absl::StrCat("claims ", count, " tensors in ", reader.left(), " bytes (at most ", kMaxTensors, " are read)"));
  }
  tensors_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    TensorInfo tensor;
    ASSIGN_OR_RETURN(const absl::string_view name, reader.String(kMaxTensorNameBytes, absl::StrCat("tensor ", i)));
    if (name.empty() || !IsValidUtf8(name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", i, "'s name is empty or no UTF-8"));
    }
    tensor.name = std::string(name);
    const std::string what = absl::StrCat("tensor ", Shown(name));
    ASSIGN_OR_RETURN(const uint32_t rank, reader.Number<uint32_t>(absl::StrCat(what, "'s rank")));
    if (rank < 1 || rank > kMaxRank) {
      return absl::InvalidArgumentError(absl::StrCat(what, " has ", rank, " dimensions; 1 to ", kMaxRank, " are read"));
    }
    uint64_t elements = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      ASSIGN_OR_RETURN(const uint64_t size, reader.Number<uint64_t>(absl::StrCat(what, "'s size")));
      if (size == 0 || size > uint64_t{std::numeric_limits<int64_t>::max()} ||
          __builtin_mul_overflow(elements, size, &elements) ||
          elements > uint64_t{std::numeric_limits<int64_t>::max()} / 8) {
        return absl::InvalidArgumentError(absl::StrCat(what, " has a size of ", size, ", or too many elements"));
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    ASSIGN_OR_RETURN(const uint32_t type, reader.Number<uint32_t>(absl::StrCat(what, "'s type")));
    const TensorTypeInfo* info = FindTensorType(type);
    if (info == nullptr) {
      return absl::UnimplementedError(absl::StrCat(what, " has type ", type, ", which is not known"));
    }
    tensor.type = info->type;
    if (tensor.shape.back() % info->block_elements != 0) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": rows of ", tensor.shape.back(),
                                                     " values are no multiple of ", info->name, "'s block of ",
                                                     info->block_elements));
    }
    tensor.bytes = elements / static_cast<uint64_t>(info->block_elements) * static_cast<uint64_t>(info->block_bytes);
    ASSIGN_OR_RETURN(tensor.offset, reader.Number<uint64_t>(absl::StrCat(what, "'s offset")));
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      return absl::InvalidArgumentError(absl::StrCat(what, " stands twice"));
    }
    tensors_.push_back(std::move(tensor));
  }
  return absl::OkStatus();
}

absl::Status File::PlaceTensors(uint64_t data_begin, uint64_t alignment) {
  std::vector<const TensorInfo*> by_offset;
  for (TensorInfo& tensor : tensors_) {
    const uint64_t data_bytes = contents_.size() < data_begin ? 0 : contents_.size() - data_begin;
    if (tensor.offset % alignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Shown(tensor.name), " begins at ", tensor.offset,
                                                     ", no multiple of the alignment ", alignment));
    }
    if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Shown(tensor.name), " (", tensor.bytes, " bytes at ",
                                                     tensor.offset, ") leaves the file's ", data_bytes,
                                                     " bytes of data: the file is cut off, or lies"));
    }
    tensor.offset += data_begin;
    by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    if (by_offset[i - 1]->offset + by_offset[i - 1]->bytes > by_offset[i]->offset) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensors ", Shown(by_offset[i - 1]->name), " and ", Shown(by_offset[i]->name), " overlap"));
    }
  }
  return absl::OkStatus();
}

const Value* File::Find(absl::string_view key) const {
  const auto it = metadata_.find(std::string(key));
  return it == metadata_.end() ? nullptr : &it->second;
}

const TensorInfo* File::FindTensor(absl::string_view name) const {
  const auto it = tensor_index_.find(std::string(name));
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

absl::Status File::WrongType(absl::string_view key, const Value& value, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": metadata key ", Shown(key), " is ",
                                                 value.is_array ? "an array of " : "", NameOf(value.type),
                                                 " (or out of range), not ", wanted));
}

absl::StatusOr<const Value*> File::Get(absl::string_view key, bool is_array) const {
  const Value* value = Find(key);
  if (value == nullptr) {
    return absl::NotFoundError(absl::StrCat(path_, ": metadata key ", Shown(key), " is missing"));
  }
  if (value->is_array != is_array) return WrongType(key, *value, is_array ? "an array" : "a single value");
  return value;
}

absl::StatusOr<int64_t> File::Integer(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, false));
  int64_t result = 0;
  if (!IsInteger(value->type) || !LoadInteger(value->type, value->bytes.data(), result)) {
    return WrongType(key, *value, "an integer");
  }
  return result;
}

absl::StatusOr<double> File::Number(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, false));
  double result = 0;
  if (!IsNumber(value->type) || !LoadNumber(value->type, value->bytes.data(), result)) {
    return WrongType(key, *value, "a finite number");
  }
  return result;
}

absl::StatusOr<bool> File::Boolean(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, false));
  if (value->type != ValueType::kBool) return WrongType(key, *value, "a bool");
  return value->bytes[0] != 0;
}

absl::StatusOr<std::string> File::String(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, false));
  if (value->type != ValueType::kString) return WrongType(key, *value, "a string");
  if (!IsValidUtf8(value->bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": metadata key ", Shown(key), " is no valid UTF-8"));
  }
  return std::string(value->bytes);
}

absl::StatusOr<std::vector<int64_t>> File::Integers(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, true));
  std::vector<int64_t> result(value->count);
  if (!IsInteger(value->type)) return WrongType(key, *value, "an array of integers");
  for (uint64_t i = 0; i < value->count; ++i) {
    if (!LoadInteger(value->type, value->bytes.data() + i * BytesOf(value->type), result[i])) {
      return WrongType(key, *value, "an array of integers");
    }
  }
  return result;
}

absl::StatusOr<std::vector<double>> File::Numbers(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, true));
  if (!IsNumber(value->type)) return WrongType(key, *value, "an array of numbers");
  std::vector<double> result(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    if (!LoadNumber(value->type, value->bytes.data() + i * BytesOf(value->type), result[i])) {
      return WrongType(key, *value, "an array of finite numbers");
    }
  }
  return result;
}

absl::StatusOr<std::vector<bool>> File::Booleans(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, true));
  if (value->type != ValueType::kBool) return WrongType(key, *value, "an array of bools");
  std::vector<bool> result(value->count);
  for (uint64_t i = 0; i < value->count; ++i) result[i] = value->bytes[i] != 0;
  return result;
}

absl::StatusOr<std::vector<std::string>> File::Strings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Get(key, true));
  if (value->type != ValueType::kString) return WrongType(key, *value, "an array of strings");
  std::vector<std::string> result;
  result.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    if (!IsValidUtf8(value->strings[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": metadata key ", Shown(key), ": string ", i, " is no valid UTF-8"));
    }
    result.emplace_back(value->strings[i]);
  }
  return result;
}

bool IsGgufFile(const std::string& path) {
  if (absl::EndsWith(absl::AsciiStrToLower(path), ".gguf")) return true;
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, 4) && absl::string_view(magic, 4) == "GGUF";
}

}  // namespace retort::gguf
