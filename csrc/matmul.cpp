#include "matmul.h"

#include "cpu.h"
#include "lanes.h"
#include "philox.h"

namespace electra_fast {
namespace {

// kRows x (16 * kPanels) results in registers.
template <int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_block(const Product& p, std::int64_t row, std::int64_t panel) {
  const float* a = p.a + row * p.a_row;
  const float* b = p.b + panel * p.b_panel;
  float* c = p.c + row * p.c_row + panel * kLanes;
  Lanes sum[kRows][kPanels] = {};
  for (std::int64_t k = 0; k < p.depth; ++k) {
    Lanes right[kPanels];
    for (int j = 0; j < kPanels; ++j) load_lanes(b + j * p.b_panel + k * p.b_row, right[j]);
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * p.a_row + k * p.a_column];
      for (int j = 0; j < kPanels; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanels; ++j) {
      float* address = c + i * p.c_row + j * kLanes;
      if (p.accumulate) {
        Lanes before;
        load_lanes(address, before);
        sum[i][j] += before;
      }
      store_lanes(address, sum[i][j]);
    }
  }
}

// All rows of kPanels panels, kRows at a time, what is left over by halves.
template <int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_panels(const Product& p, std::int64_t row, std::int64_t panel) {
  for (; row + kRows <= p.rows; row += kRows) multiply_block<kRows, kPanels>(p, row, panel);
  if constexpr (kRows > 1) multiply_panels<kRows / 2, kPanels>(p, row, panel);
}

template <int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_all(const Product& p) {
  const std::int64_t panels = (p.columns + kLanes - 1) / kLanes;
  std::int64_t panel = 0;
  for (; panel + kPanels <= panels; panel += kPanels) multiply_panels<kRows, kPanels>(p, 0, panel);
  if constexpr (kPanels > 1) {
    if (panel < panels) multiply_panels<kRows, 1>(p, 0, panel);
  }
}

// 32 registers of 16 floats hold 8 x 32 sums; AVX2's 16 of 8 floats hold 4 x 16.
ELECTRA_FAST_CLONES void multiply_wide(const Product& product) { multiply_all<8, 2>(product); }
ELECTRA_FAST_CLONES void multiply_narrow(const Product& product) { multiply_all<4, 1>(product); }

}  // namespace

void multiply(const Product& product) {
  has_avx512() ? multiply_wide(product) : multiply_narrow(product);
}

}  // namespace electra_fast
