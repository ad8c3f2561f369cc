#include "model/parallel_for.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace retort {

void ParallelFor(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body) {
  const int64_t slices = (count + grain - 1) / grain;
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t slice = next++; slice < slices; slice = next++) {
      body(slice * grain, std::min(count, (slice + 1) * grain));
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(at::get_num_threads(), slices); ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace retort
