#include "matmul.h"

#include "lanes.h"
#include "philox.h"

namespace electra_fast {
namespace {

// kRows x (16 * kPanels) results in registers.
template <int kBytes, int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_block(const Product& p, std::int64_t row, std::int64_t panel) {
  const float* a = p.a + row * p.a_row;
  const float* b = p.b + panel * p.b_panel;
  float* c = p.c + row * p.c_row + panel * kLanes;
  Lanes<kBytes> sum[kRows][kPanels] = {};
  for (std::int64_t k = 0; k < p.depth; ++k) {
    Lanes<kBytes> right[kPanels];
    for (int j = 0; j < kPanels; ++j) right[j].load(b + j * p.b_panel + k * p.b_row);
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * p.a_row + k * p.a_column];
      for (int j = 0; j < kPanels; ++j) sum[i][j].add_product(left, right[j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanels; ++j) {
      float* address = c + i * p.c_row + j * kLanes;
      if (p.accumulate) {
        Lanes<kBytes> before;
        before.load(address);
        sum[i][j].add(before);
      }
      sum[i][j].store(address);
    }
  }
}

// All rows of kPanels panels, kRows at a time, what is left over by halves.
template <int kBytes, int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_panels(const Product& p, std::int64_t row, std::int64_t panel) {
  for (; row + kRows <= p.rows; row += kRows) multiply_block<kBytes, kRows, kPanels>(p, row, panel);
  if constexpr (kRows > 1) multiply_panels<kBytes, kRows / 2, kPanels>(p, row, panel);
}

template <int kBytes, int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_all(const Product& p) {
  const std::int64_t panels = (p.columns + kLanes - 1) / kLanes;
  std::int64_t panel = 0;
  for (; panel + kPanels <= panels; panel += kPanels) multiply_panels<kBytes, kRows, kPanels>(p, 0, panel);
  if constexpr (kPanels > 1) {
    if (panel < panels) multiply_panels<kBytes, kRows, 1>(p, 0, panel);
  }
}

// 32 registers of AVX-512 hold 8 x 32 sums, the 16 of AVX2 or 32 of NEON 4 x 16, and what they are made of.
ELECTRA_FAST_CLONES void multiply_wide(const Product& product) { multiply_all<kWide, 8, 2>(product); }
ELECTRA_FAST_CLONES void multiply_narrow(const Product& product) { multiply_all<kNarrow, 4, 1>(product); }

}  // namespace

void multiply(const Product& product) { is_wide() ? multiply_wide(product) : multiply_narrow(product); }

}  // namespace electra_fast
