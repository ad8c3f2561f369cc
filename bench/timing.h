// Clocks of the benchmarks.
#pragma once

#include <c10/core/Device.h>

#include <functional>

namespace retort::bench {

// Of a clock that only goes forward.
double Seconds();

// Waits until the device has done all that was queued.
void Synchronize(c10::Device device);

// How long the device takes for what `body` queues on its current stream, from an idle device on; on a CPU, how long
// `body` takes.
double Milliseconds(c10::Device device, const std::function<void()>& body);

}  // namespace retort::bench
