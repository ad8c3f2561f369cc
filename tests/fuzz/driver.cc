// usage: <target> [--runs N] [--seed S] [FILE...]
// With files: runs each once, to repeat a finding. Before each input the driver keeps a copy in memory; on a crash it
// is written to crash.<seed>.<run> in the working directory.
#include "tests/fuzz/driver.h"

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

namespace retort {
namespace {

constexpr size_t kMaxInputBytes = 1 << 16;

std::string current;
char crash_path[64];

extern "C" void __asan_set_death_callback(void (*callback)()) __attribute__((weak));

void WriteCurrent() {
  if (FILE* file = std::fopen(crash_path, "wb"); file != nullptr) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "the input is in %s\n", crash_path);
  }
}

void OnSignal(int signal) {
  WriteCurrent();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

class Mutator {
 public:
  Mutator(std::vector<std::string> seeds, uint64_t seed) : seeds_(std::move(seeds)), random_(seed) {}

  std::string Next() {
    std::string input = Pick();
    const uint64_t changes = 1 + Below(1 + Below(8));
    for (uint64_t i = 0; i < changes; ++i) Change(input);
    if (input.size() > kMaxInputBytes) input.resize(kMaxInputBytes);
    return input;
  }

 private:
  uint64_t Below(uint64_t bound) { return random_() % bound; }
  const std::string& Pick() { return seeds_[Below(seeds_.size())]; }

  template <typename T>
  void Overwrite(std::string& input, T value) {
    if (input.size() < sizeof(T)) return;
    std::memcpy(input.data() + Below(input.size() - sizeof(T) + 1), &value, sizeof(T));
  }

  // Numbers at the edges of types and sizes.
  uint64_t Interesting() {
    const uint64_t base = uint64_t{1} << Below(64);
    switch (Below(5)) {
      case 0:
        return base;
      case 1:
        return base - 1;
      case 2:
        return ~base;
      case 3:
        return Below(64);
      default:
        return 0 - Below(64);
    }
  }

  void Change(std::string& input) {
    if (input.empty()) {
      input = Pick();
      return;
    }
    const size_t at = Below(input.size());
    const size_t length = 1 + Below(std::min<size_t>(input.size() - at, 64));
    switch (Below(9)) {
      case 0:
        input[at] = static_cast<char>(input[at] ^ (1 << Below(8)));
        break;
      case 1:
        input[at] = static_cast<char>(Below(256));
        break;
      case 2:
        Overwrite(input, Interesting());
        break;
      case 3:
        Overwrite(input, static_cast<uint32_t>(Interesting()));
        break;
      case 4:
        input.erase(at, length);
        break;
      case 5:
        input.insert(Below(input.size()), input.substr(at, length));
        break;
      case 6:
        input.resize(at);
        break;
      case 7: {
        const std::string& other = Pick();
        if (other.empty()) break;
        const size_t from = Below(other.size());
        input.replace(at, length, other.substr(from, 1 + Below(64)));
        break;
      }
      default:
        input.insert(at, std::string(1 + Below(32), static_cast<char>(Below(256))));
        break;
    }
  }

  const std::vector<std::string> seeds_;
  std::mt19937_64 random_;
};

void Run(const std::string& input) {
  current = input;
  // A copy of exactly this size, so that a sanitizer sees what is read behind it.
  const std::vector<uint8_t> copy(input.begin(), input.end());
  LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

int Main(int argc, char** argv) {
  uint64_t runs = 100'000;
  uint64_t seed = 1;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--runs") == 0 && i + 1 < argc) {
      runs = std::strtoull(argv[++i], nullptr, 10);
    } else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      files.push_back(argv[i]);
    }
  }
  for (const std::string& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot open %s\n", path.c_str());
      return 2;
    }
    Run(std::string(std::istreambuf_iterator<char>(file), {}));
  }
  if (!files.empty()) return 0;

  for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, OnSignal);
  if (__asan_set_death_callback != nullptr) __asan_set_death_callback(WriteCurrent);
  const auto started = std::chrono::steady_clock::now();
  const std::vector<std::string> seeds = Seeds();
  for (const std::string& input : seeds) Run(input);
  Mutator mutator(seeds, seed);
  for (uint64_t run = 0; run < runs; ++run) {
    std::snprintf(crash_path, sizeof(crash_path), "crash.%llu.%llu", static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(run));
    Run(mutator.Next());
  }
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  std::printf("%llu runs from %zu seeds in %.0f s, at most %ld MiB, no finding\n",
              static_cast<unsigned long long>(runs), seeds.size(), seconds, usage.ru_maxrss / 1024);
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
