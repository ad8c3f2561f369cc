#include "model/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/file.h"
#include "common/status.h"
#include "model/safetensors_writer.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = uint64_t{32} << 20;
constexpr int64_t kMaxRank = 16;
constexpr int kMaxHeaderDepth = 3;

struct DtypeName {
  const char* name;
  c10::ScalarType type;
};
constexpr DtypeName kDtypes[] = {
    {"F64", c10::ScalarType::Double},
    {"F32", c10::ScalarType::Float},
    {"F16", c10::ScalarType::Half},
    {"BF16", c10::ScalarType::BFloat16},
    {"I64", c10::ScalarType::Long},
    {"I32", c10::ScalarType::Int},
    {"I16", c10::ScalarType::Short},
    {"I8", c10::ScalarType::Char},
    {"U8", c10::ScalarType::Byte},
    {"U16", c10::ScalarType::UInt16},
    {"U32", c10::ScalarType::UInt32},
    {"U64", c10::ScalarType::UInt64},
    {"BOOL", c10::ScalarType::Bool},
    {"F8_E4M3", c10::ScalarType::Float8_e4m3fn},
    {"F8_E5M2", c10::ScalarType::Float8_e5m2},
};

std::optional<c10::ScalarType> DtypeOf(absl::string_view name) {
  for (const DtypeName& entry : kDtypes) {
    if (name == entry.name) return entry.type;
  }
  return std::nullopt;
}

const char* NameOf(c10::ScalarType type) {
  for (const DtypeName& entry : kDtypes) {
    if (type == entry.type) return entry.name;
  }
  return nullptr;
}

struct Entry {
  c10::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // offsets in the data part
  uint64_t end = 0;
};

// Parses the header and refuses, while parsing, what no header holds (deep nesting, long lists, a key twice), so that
// memory stays near the header's size.
absl::StatusOr<json> ParseHeader(absl::string_view text) {
  if (!absl::StartsWith(text, "{")) return absl::InvalidArgumentError("header does not begin with '{'");
  std::string problem;
  std::vector<std::set<std::string>> keys;  // of the open objects
  std::vector<int64_t> lengths;             // of the open lists; far below zero for an object
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (!problem.empty()) return false;
    if (depth > kMaxHeaderDepth) problem = "nests too deep";
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        lengths.push_back(std::numeric_limits<int64_t>::min());
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        lengths.pop_back();
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(value.get<std::string>()).second) {
          problem = absl::StrCat("holds the key \"", value.get<std::string>(), "\" twice");
        }
        break;
      case json::parse_event_t::array_start:
        lengths.push_back(0);
        break;
      case json::parse_event_t::array_end:
        lengths.pop_back();
        break;
      case json::parse_event_t::value:
        if (!lengths.empty() && ++lengths.back() > kMaxRank) problem = "holds a list that is too long";
        break;
    }
    return problem.empty();
  };
  json header;
  try {
    header = json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("header is not valid JSON: ", error.what()));
  }
  if (!problem.empty()) return absl::InvalidArgumentError(absl::StrCat("header ", problem));
  return header;
}

absl::StatusOr<uint64_t> WholeNumber(const json& value) {
  if (!value.is_number_unsigned()) return absl::InvalidArgumentError("not a whole number of at least 0");
  return value.get<uint64_t>();
}

absl::StatusOr<Entry> ParseEntry(const json& value, uint64_t data_bytes) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    return absl::InvalidArgumentError("must hold exactly dtype, shape and data_offsets");
  }
  Entry entry;
  const json& dtype = value["dtype"];
  if (!dtype.is_string()) return absl::InvalidArgumentError("dtype is not a string");
  const auto type = DtypeOf(dtype.get<std::string>());
  if (!type) return absl::InvalidArgumentError(absl::StrCat("unknown dtype \"", dtype.get<std::string>(), "\""));
  entry.dtype = *type;

  const json& shape = value["shape"];
  if (!shape.is_array()) return absl::InvalidArgumentError("shape is not a list");
  uint64_t bytes = c10::elementSize(entry.dtype);
  for (const json& dimension : shape) {
    const auto size = WholeNumber(dimension);
    if (!size.ok()) return WithContext(size.status(), "shape");
    if (*size > uint64_t{std::numeric_limits<int64_t>::max()} || __builtin_mul_overflow(bytes, *size, &bytes)) {
      return absl::InvalidArgumentError("shape: the product of sizes overflows");
    }
    entry.shape.push_back(static_cast<int64_t>(*size));
  }

  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    return absl::InvalidArgumentError("data_offsets is not a list of two");
  }
  const auto begin = WholeNumber(offsets[0]);
  const auto end = WholeNumber(offsets[1]);
  if (!begin.ok() || !end.ok()) return absl::InvalidArgumentError("data_offsets: not two whole numbers");
  if (*begin > *end || *end > data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets ", *begin, "..", *end, " leave the file's ", data_bytes, " bytes of data"));
  }
  if (*end - *begin != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype and shape need ", bytes, " bytes, data_offsets hold ", *end - *begin));
  }
  entry.begin = *begin;
  entry.end = *end;
  return entry;
}

// Tensors must fill the data part without gap or overlap, as the reference implementation demands: what no tensor names
// could hide another file.
absl::Status CheckCoverage(const std::map<std::string, Entry>& entries, uint64_t data_bytes) {
  std::vector<std::pair<const std::string*, const Entry*>> by_offset;
  by_offset.reserve(entries.size());
  for (const auto& [name, entry] : entries) by_offset.emplace_back(&name, &entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto& a, const auto& b) {
    return std::tie(a.second->begin, a.second->end) < std::tie(b.second->begin, b.second->end);
  });
  uint64_t expected = 0;
  for (const auto& [name, entry] : by_offset) {
    if (entry->begin != expected) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", *name, "\" begins at ", entry->begin, ", ",
                                                     entry->begin < expected ? "inside another" : "after a gap",
                                                     " (the data before it end at ", expected, ")"));
    }
    expected = entry->end;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensors end at ", expected, ", the file holds ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

// Takes a tensor's pages out of the process when nothing looks at it any more, so that a model that is copied as it is
// loaded is not in memory twice; they stay in the page cache.
void LeavePages(void* data, uint64_t bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

struct SafetensorsFile::Mapping {
  std::string path;
  void* address = MAP_FAILED;
  size_t size_bytes = 0;
  const uint8_t* data = nullptr;
  std::map<std::string, Entry> entries;
  std::vector<std::string> names;
  std::map<std::string, std::string> metadata;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address != MAP_FAILED) munmap(address, size_bytes);
  }

  absl::Status Map();
  absl::Status ReadHeader();
};

absl::Status SafetensorsFile::Mapping::Map() {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("stat", errno);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError("not a regular file");
  size_bytes = static_cast<size_t>(info.st_size);
  if (size_bytes < 10) {
    return absl::InvalidArgumentError(absl::StrCat("truncated: ", size_bytes, " bytes, a header needs at least 10"));
  }
  address = mmap(nullptr, size_bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return ErrnoStatus("mmap", errno);
  return absl::OkStatus();
}

absl::Status SafetensorsFile::Mapping::ReadHeader() {
  const auto* bytes = static_cast<const uint8_t*>(address);
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | bytes[i];
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("header length ", header_bytes, " is over the limit of ",
                                                   kMaxHeaderBytes,
                                                   " bytes: not a safetensors file, or a corrupt one"));
  }
  if (header_bytes > size_bytes - 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("truncated: header length ", header_bytes, ", but only ", size_bytes - 8, " bytes follow"));
  }
  const uint64_t data_bytes = size_bytes - 8 - header_bytes;
  data = bytes + 8 + header_bytes;
  ASSIGN_OR_RETURN(const json header, ParseHeader({reinterpret_cast<const char*>(bytes) + 8, header_bytes}));
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) return absl::InvalidArgumentError("__metadata__ holds something that is no string");
        metadata[key] = text.get<std::string>();
      }
      continue;
    }
    auto entry = ParseEntry(value, data_bytes);
    if (!entry.ok()) return WithContext(entry.status(), absl::StrCat("tensor \"", name, "\""));
    entries.emplace(name, *std::move(entry));
  }
  for (const auto& [name, entry] : entries) names.push_back(name);
  return CheckCoverage(entries, data_bytes);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  auto mapping = std::make_shared<Mapping>();
  mapping->path = path;
  if (const absl::Status status = mapping->Map(); !status.ok()) return WithContext(status, path);
  if (const absl::Status status = mapping->ReadHeader(); !status.ok()) return WithContext(status, path);
  SafetensorsFile file;
  file.mapping_ = std::move(mapping);
  return file;
}

const std::vector<std::string>& SafetensorsFile::names() const { return mapping_->names; }

const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return mapping_->metadata; }

bool SafetensorsFile::Has(const std::string& name) const { return mapping_->entries.contains(name); }

absl::StatusOr<at::Tensor> SafetensorsFile::Get(const std::string& name) const {
  const auto it = mapping_->entries.find(name);
  if (it == mapping_->entries.end()) {
    return absl::NotFoundError(absl::StrCat(mapping_->path, ": no tensor \"", name, "\""));
  }
  const Entry& entry = it->second;
  return CatchTorchErrors(absl::StrCat(mapping_->path, ": tensor ", name), [&]() -> absl::StatusOr<at::Tensor> {
    auto* address = const_cast<uint8_t*>(mapping_->data + entry.begin);
    const auto options = at::TensorOptions(entry.dtype);
    if (reinterpret_cast<uintptr_t>(address) % c10::elementSize(entry.dtype) != 0) {
      at::Tensor copy = at::empty(entry.shape, options);
      std::memcpy(copy.mutable_data_ptr(), address, entry.end - entry.begin);
      return copy;
    }
    const auto release = [keep = mapping_, bytes = entry.end - entry.begin](void* data) { LeavePages(data, bytes); };
    return at::from_blob(address, entry.shape, release, options);
  });
}

const char* SafetensorsDtypeName(c10::ScalarType dtype) { return NameOf(dtype); }

absl::Status WriteSafetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  return CatchTorchErrors(absl::StrCat("write ", path), [&]() -> absl::Status {
    std::vector<SafetensorsEntry> entries;
    entries.reserve(tensors.size());
    for (const auto& [name, tensor] : tensors) {
      entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
    }
    ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, std::move(entries), metadata));
    for (const auto& [name, tensor] : tensors) RETURN_IF_ERROR(writer.Append(tensor));
    return writer.Commit();
  });
}

}  // namespace retort
