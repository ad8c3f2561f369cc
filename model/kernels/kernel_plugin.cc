#include "model/kernels/kernel_plugin.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <spdlog/spdlog.h>

#include <string>

#include "common/plugin.h"

namespace retort {

const void* LoadKernelTable(const char* library, const char* symbol, const char* what) {
  std::string reasons;
  void* address = OpenPlugin(library, symbol, reasons);
  if (address == nullptr) {
    spdlog::info("{}_kernels_absent reasons=\"{}\"", what, reasons);
    return nullptr;
  }
  return reinterpret_cast<const void* (*)()>(address)();
}

void* StreamOf(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

}  // namespace retort
