// Random words for neighbouring columns of one row, as dropout needs them.
#pragma once

#include <cstdint>

namespace electra_fast {

constexpr std::int64_t kDrawBlocks = 16;  // column blocks are drawn 16 at a time: 64 columns

// words[column] for the columns [4 * first_block, 4 * (first_block + blocks)); `blocks` is a multiple of kDrawBlocks.
void draw(std::uint64_t seed, std::uint32_t first_block, std::int64_t blocks, std::uint64_t row_id,
          std::uint32_t stream, std::uint32_t* words);

}  // namespace electra_fast
