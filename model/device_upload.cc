#include "model/device_upload.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

namespace retort {
namespace {

constexpr int64_t kBufferBytes = int64_t{256} << 20;
constexpr int64_t kPieceBytes = int64_t{2} << 20;

}  // namespace

DeviceUploader::DeviceUploader(c10::Device device) : device_(device), pool_(std::max(1, at::get_num_threads())) {
  for (Buffer& buffer : buffers_) {
    buffer.pinned = at::empty({kBufferBytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  }
}

DeviceUploader::~DeviceUploader() {
  for (Buffer& buffer : buffers_) {
    if (buffer.in_flight) buffer.sent.synchronize();
  }
}

at::Tensor DeviceUploader::Upload(const at::Tensor& host) {
  at::Tensor result = at::empty(host.sizes(), host.options().device(device_));
  const auto total = static_cast<int64_t>(host.nbytes());
  if (total == 0) return result;
  const at::Tensor bytes = result.view({-1}).view(at::kByte);
  const char* from = static_cast<const char*>(host.const_data_ptr());
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  for (int64_t begin = 0; begin < total; begin += kBufferBytes) {
    Buffer& buffer = buffers_[next_];
    next_ = 1 - next_;
    if (buffer.in_flight) buffer.sent.synchronize();
    const int64_t count = std::min(kBufferBytes, total - begin);
    char* to = static_cast<char*>(buffer.pinned.mutable_data_ptr());
    pool_.Run([&](int) {
      pool_.Share((count + kPieceBytes - 1) / kPieceBytes, 1, [&](int64_t first, int64_t last) {
        const int64_t start = first * kPieceBytes;
        std::memcpy(to + start, from + begin + start, static_cast<size_t>(std::min(count, last * kPieceBytes) - start));
      });
    });
    bytes.narrow(0, begin, count).copy_(buffer.pinned.narrow(0, 0, count), /*non_blocking=*/true);
    buffer.sent.record(stream);
    buffer.in_flight = true;
  }
  return result;
}

}  // namespace retort
