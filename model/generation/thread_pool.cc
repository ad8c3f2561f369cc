#include "model/generation/thread_pool.h"

#include "common/check.h"

namespace retort::internal {
namespace {

// About 20 microseconds: longer than a stage's imbalance, shorter than a scheduler's slice.
constexpr int kSpins = 2000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void WaitWhile(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  RETORT_CHECK(threads >= 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  run_.fetch_add(1, std::memory_order_release);
  run_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::Run(const std::function<void(int)>& body) {
  body_ = &body;
  run_.fetch_add(1, std::memory_order_release);
  run_.notify_all();
  body(0);
  Barrier();
  body_ = nullptr;
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    WaitWhile(run_, seen);
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    (*body_)(thread);
    Barrier();
  }
}

void ThreadPool::Barrier() {
  if (threads_ == 1) return;
  const uint32_t passed = barrier_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    barrier_.store(passed + 1, std::memory_order_release);
    barrier_.notify_all();
  } else {
    WaitWhile(barrier_, passed);
  }
}

void ThreadPool::ResetAtBarrier() {
  if (threads_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t passed = barrier_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(threads_)) {
    next_.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    barrier_.store(passed + 1, std::memory_order_release);
    barrier_.notify_all();
  } else {
    WaitWhile(barrier_, passed);
  }
}

}  // namespace retort::internal
