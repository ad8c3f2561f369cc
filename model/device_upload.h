// Weights from mapped files to a GPU at the speed of the bus.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>

#include <array>

#include "model/generation/thread_pool.h"

namespace retort {

// A plain copy out of pageable memory takes its page faults one by one, on one thread, and waits for each piece. Here
// all threads fill one pinned buffer while the one before it travels. One thread calls it at a time; throws c10::Error.
class DeviceUploader {
 public:
  explicit DeviceUploader(c10::Device device);
  ~DeviceUploader();

  // `host`: contiguous, on the CPU. The tensor may be used at once by work on the device's current stream.
  at::Tensor Upload(const at::Tensor& host);

 private:
  struct Buffer {
    at::Tensor pinned;  // [kBufferBytes], uint8
    c10::Event sent{c10::DeviceType::CUDA};
    bool in_flight = false;
  };

  const c10::Device device_;
  internal::ThreadPool pool_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace retort
