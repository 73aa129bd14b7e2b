// The one parallel loop.
//
// Under PyTorch's own OpenMP runtime where it has one, found at run time and not linked: its threads are warm, and a
// second runtime in the process would fight them for the cores. Elsewhere, std::thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace electra_fast {

// The three entry points that GCC's OpenMP calls compile to; LLVM's and Intel's runtimes export them too.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_index)() = nullptr;
  int (*team_size)() = nullptr;

  static const OpenMP& get() {
    static const OpenMP found;
    return found;
  }

  bool available() const { return parallel && thread_index && team_size; }

 private:
  OpenMP() {
#if defined(__unix__) || defined(__APPLE__)
    // PyTorch loads its runtime globally before anything else of it, so these names resolve to that one.
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    thread_index = reinterpret_cast<decltype(thread_index)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    team_size = reinterpret_cast<decltype(team_size)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
#endif
  }
};

// Calls fn(begin, end) for ranges that cover [0, n), each of at least `grain` items, on up to `threads` threads. With
// one thread, or too little work for two, the caller does it all and no runtime is entered: forked workers depend on it.
template <class Function>
void parallel_for(std::int64_t n, int threads, std::int64_t grain, const Function& fn) {
  static_assert(noexcept(fn(n, n)), "an exception can't leave a thread");
  const std::int64_t chunks = std::min<std::int64_t>(threads, n / std::max<std::int64_t>(grain, 1));
  if (chunks <= 1) {
    if (n > 0) fn(std::int64_t{0}, n);
    return;
  }
  struct Loop {
    const Function& fn;
    std::int64_t n, chunks;
    void run(std::int64_t chunk) const noexcept { fn(n * chunk / chunks, n * (chunk + 1) / chunks); }
  };
  Loop loop{fn, n, chunks};

  if (OpenMP::get().available()) {
    // The team may be smaller than asked for, for instance inside another parallel region.
    const auto body = [](void* data) {
      const Loop& loop = *static_cast<const Loop*>(data);
      const OpenMP& runtime = OpenMP::get();
      for (std::int64_t c = runtime.thread_index(); c < loop.chunks; c += runtime.team_size()) loop.run(c);
    };
    OpenMP::get().parallel(body, &loop, static_cast<unsigned>(chunks), 0);
    return;
  }
  std::vector<std::thread> team;
  team.reserve(static_cast<std::size_t>(chunks - 1));
  std::int64_t started = 1;
  try {
    for (; started < chunks; ++started) team.emplace_back([&loop, c = started] { loop.run(c); });
  } catch (const std::system_error&) {
    // No more threads to be had: this one does what is left.
  }
  loop.run(0);
  for (std::int64_t c = started; c < chunks; ++c) loop.run(c);
  for (std::thread& thread : team) thread.join();
}

}  // namespace electra_fast
