// A team of threads for steps that last microseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace retort::internal {

// Runs one function on all its threads at once; within it the threads meet at barriers and share out loops. The waits
// spin for some microseconds, then sleep in the kernel, so that an idle team costs nothing and an oversubscribed
// machine still moves. One caller at a time.
class ThreadPool {
 public:
  // The calling thread is one of the `threads`.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls `body`(thread index) on every thread and returns when all have.
  void Run(const std::function<void(int)>& body);

  // Within Run: returns when every thread has come here.
  void Barrier();

  // Within Run, called by all threads with the same arguments: shares [0, count) out in slices of `grain`, first come,
  // first served, and ends with a barrier. `body`(begin, end) may run on any thread.
  template <typename Body>
  void Share(int64_t count, int64_t grain, const Body& body) {
    for (;;) {
      const int64_t begin = next_.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      body(begin, begin + grain < count ? begin + grain : count);
    }
    ResetAtBarrier();
  }

 private:
  void Work(int thread);
  void ResetAtBarrier();

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> run_{0};      // rises with every Run
  alignas(64) std::atomic<uint32_t> arrived_{0};  // at the current barrier
  alignas(64) std::atomic<uint32_t> barrier_{0};  // barriers passed
  alignas(64) std::atomic<int64_t> next_{0};      // of the loop that is being shared out
};

}  // namespace retort::internal
