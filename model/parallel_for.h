// A loop over threads of its own.
#pragma once

#include <cstdint>
#include <functional>

namespace retort {

// Runs `body`(begin, end) over slices of [0, count) of at most `grain`, on as many threads as libtorch computes with,
// and returns when all are done. Which thread takes which slice is open. For loops of milliseconds and more: the
// threads are made for the call. (at::parallel_for is a plain loop in files that are compiled without OpenMP, as ours
// are.)
void ParallelFor(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace retort
