// Products of matrices that fit the cache, for kernels that multiply many small ones: no BLAS is linked.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace electra_fast {

inline std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// c = a b, or c += a b, over `depth`: a [rows, depth], b [depth, columns], c [rows, columns], all float32.
//
// The left factor may have any strides, so its transpose costs nothing. The right one is read 16 columns at a time:
// element (k, j) lies at b[(j / 16) * b_panel + k * b_row + j % 16], which is row-major with b_panel = 16, or panels
// of 16 columns that are contiguous each, kinder to the cache, with b_row = 16. Its columns are padded to a multiple of
// 16, and so are those of the row-major result, where they are written. Every sum runs over k in ascending order.
struct Product {
  std::int64_t rows, columns, depth;
  const float* a;
  std::int64_t a_row, a_column;
  const float* b;
  std::int64_t b_row, b_panel;
  float* c;
  std::int64_t c_row;
  bool accumulate;
};

void multiply(const Product& product);

}  // namespace electra_fast
