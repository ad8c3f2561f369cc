#include "bench/timing.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>

namespace retort::bench {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void Synchronize(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.index());
}

double Milliseconds(c10::Device device, const std::function<void()>& body) {
  if (!device.is_cuda()) {
    const double start = Seconds();
    body();
    return 1e3 * (Seconds() - start);
  }
  Synchronize(device);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  c10::Event begin(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  begin.record(stream);
  body();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end);
}

}  // namespace retort::bench
