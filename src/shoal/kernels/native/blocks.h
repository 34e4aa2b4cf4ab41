// GGUF blocks of small integers to numbers.
#pragma once
#include <cstdint>

enum BlockType { Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, BLOCK_TYPES };

struct BlockShape {
    int64_t elements, bytes;
};

extern const BlockShape BLOCK_SHAPES[BLOCK_TYPES];

// blocks, one after the other, to float32, or bf16 rounded to nearest, ties to even.
void decode_blocks(BlockType type, const uint8_t *blocks, int64_t count, void *out, int bf16);
