#include "model/generation/packed_matrix.h"

#include <ATen/ATen.h>
#include <sys/mman.h>

#include <atomic>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/generation/cpu_kernels.h"

namespace retort::internal {
namespace {

// The bits of a stored value as f32.
inline uint32_t Widen(float x) { return std::bit_cast<uint32_t>(x); }
inline uint32_t Widen(c10::BFloat16 x) { return uint32_t{x.x} << 16; }

// Where a panel's 16 rows come from.
struct PanelSource {
  const at::Tensor* part = nullptr;
  int64_t first_row = 0;
};

PanelSource SourceOf(const std::vector<at::Tensor>& parts, bool interleave, int64_t panel) {
  if (interleave) return {&parts[panel % 2], panel / 2 * kPanelWidth};
  for (const auto& part : parts) {
    const int64_t panels = RoundUpToPanel(part.size(0)) / kPanelWidth;
    if (panel < panels) return {&part, panel * kPanelWidth};
    panel -= panels;
  }
  RETORT_CHECK(false);
}

bool AllBf16(const at::Tensor& part, ThreadPool& pool) {
  if (part.scalar_type() == c10::ScalarType::BFloat16) return true;
  const float* values = part.const_data_ptr<float>();
  std::atomic<bool> exact{true};
  pool.Run([&](int) {
    pool.Share(part.numel(), int64_t{1} << 16, [&](int64_t begin, int64_t end) {
      if (!exact.load(std::memory_order_relaxed)) return;
      uint32_t low_bits = 0;
      for (int64_t i = begin; i < end; ++i) low_bits |= std::bit_cast<uint32_t>(values[i]) & 0xffffU;
      if (low_bits != 0) exact.store(false, std::memory_order_relaxed);
    });
  });
  return exact.load();
}

template <typename Stored>
void PackPanel(const PanelSource& source, bool bf16, void* out) {
  const int64_t in_features = source.part->size(1);
  const int64_t rows = std::min(kPanelWidth, source.part->size(0) - source.first_row);
  const Stored* values = source.part->const_data_ptr<Stored>() + source.first_row * in_features;
  constexpr int64_t kBlock = 64;  // inputs at a time: 16 rows of them fit in the first-level cache
  for (int64_t begin = 0; begin < in_features; begin += kBlock) {
    const int64_t end = std::min(in_features, begin + kBlock);
    for (int64_t row = 0; row < rows; ++row) {
      const Stored* from = values + row * in_features;
      if (bf16) {
        auto* to = static_cast<uint16_t*>(out) + (row < 8 ? 2 * row : 2 * (row - 8) + 1);
        for (int64_t i = begin; i < end; ++i) to[i * kPanelWidth] = static_cast<uint16_t>(Widen(from[i]) >> 16);
      } else {
        auto* to = static_cast<uint32_t*>(out) + row;
        for (int64_t i = begin; i < end; ++i) to[i * kPanelWidth] = Widen(from[i]);
      }
    }
  }
}

}  // namespace

PageBuffer::~PageBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_bytes_));
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

absl::StatusOr<PageBuffer> PageBuffer::Allocate(int64_t size_bytes, bool huge) {
  PageBuffer buffer;
  buffer.size_bytes_ = std::max<int64_t>(size_bytes, 1);
  void* data = mmap(nullptr, static_cast<size_t>(buffer.size_bytes_), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", size_bytes / (1 << 20), " MiB"));
  }
  buffer.data_ = data;
  // Advice: where the kernel does not take it, pages stay small.
  madvise(data, static_cast<size_t>(buffer.size_bytes_), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return buffer;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const std::vector<at::Tensor>& parts, bool interleave,
                                                ThreadPool& pool) {
  RETORT_CHECK(!parts.empty() && (!interleave || parts.size() == 2));
  std::vector<at::Tensor> sources;
  PackedMatrix matrix;
  matrix.in_features_ = parts[0].size(1);
  matrix.bf16_ = true;
  for (const auto& part : parts) {
    RETORT_CHECK(part.dim() == 2 && part.size(1) == matrix.in_features_);
    at::Tensor source = part.contiguous();
    if (source.scalar_type() != c10::ScalarType::BFloat16) source = source.to(c10::ScalarType::Float);
    matrix.bf16_ = matrix.bf16_ && AllBf16(source, pool);
    matrix.out_features_ += source.size(0);
    matrix.panels_ += RoundUpToPanel(source.size(0)) / kPanelWidth;
    sources.push_back(std::move(source));
  }
  const int64_t panel_bytes = matrix.panel_stride() * (matrix.bf16_ ? 2 : 4);
  ASSIGN_OR_RETURN(matrix.pages_, PageBuffer::Allocate(matrix.panels_ * panel_bytes, true));
  auto* base = static_cast<char*>(matrix.pages_.data());
  pool.Run([&](int) {
    pool.Share(matrix.panels_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const PanelSource source = SourceOf(sources, interleave, panel);
        void* out = base + panel * panel_bytes;
        if (source.part->scalar_type() == c10::ScalarType::BFloat16) {
          PackPanel<c10::BFloat16>(source, matrix.bf16_, out);
        } else {
          PackPanel<float>(source, matrix.bf16_, out);
        }
      }
    });
  });
  return matrix;
}

const void* PackedMatrix::panel(int64_t index) const {
  return static_cast<const char*>(pages_.data()) + index * panel_stride() * (bf16_ ? 2 : 4);
}

void PackedMatrix::UnpackRow(int64_t row, float* out) const {
  const int64_t lane = row % kPanelWidth;
  const void* base = panel(row / kPanelWidth);
  if (bf16_) {
    const auto* from = static_cast<const uint16_t*>(base) + (lane < 8 ? 2 * lane : 2 * (lane - 8) + 1);
    for (int64_t i = 0; i < in_features_; ++i) out[i] = std::bit_cast<float>(uint32_t{from[i * kPanelWidth]} << 16);
  } else {
    const auto* from = static_cast<const float*>(base) + lane;
    for (int64_t i = 0; i < in_features_; ++i) out[i] = from[i * kPanelWidth];
  }
}

}  // namespace retort::internal
