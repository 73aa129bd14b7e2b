// What the machine has, where the loader's choice between clones of a function (philox.h) is not enough.
#pragma once

namespace electra_fast {

inline bool has_avx512() {
#if defined(__GNUC__) && defined(__x86_64__)
  static const bool found = __builtin_cpu_supports("avx512f") != 0;
  return found;
#else
  return false;
#endif
}

}  // namespace electra_fast
