// GGUF blocks of small integers to float32, or to bf16 rounded to nearest, ties to even.
//
// Layouts are those of ggml-quants.h of the ggml project; operations on float32 are the plain twin's in its order
// (shoal/models/tensors/dequantize.py), so that both give the same bits.
#pragma once
#include <cstring>

#include "abi.h"
#include "vectors.h"

static float half(const uint8_t *at) {
    uint32_t bits = at[0] | at[1] << 8, sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023;
    uint32_t word = sign | (exponent + 112) << 23 | rest << 13;
    if (exponent == 31) word |= 0x7f800000;
    float value;
    if (!exponent) {  // zero or subnormal: rest * 2^-24
        value = (float)rest * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &word, 4);
    return value;
}

static void q4_0(const uint8_t *b, float *out) {
    float scale = half(b);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)((b[2 + i] & 15) - 8) * scale;
        out[16 + i] = (float)((b[2 + i] >> 4) - 8) * scale;
    }
}

static void q5_0(const uint8_t *b, float *out) {
    float scale = half(b);
    uint32_t fifth;
    memcpy(&fifth, b + 2, 4);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)((int)((b[6 + i] & 15) | (fifth >> i & 1) << 4) - 16) * scale;
        out[16 + i] = (float)((int)((b[6 + i] >> 4) | (fifth >> (16 + i) & 1) << 4) - 16) * scale;
    }
}

static void q8_0(const uint8_t *b, float *out) {
    float scale = half(b);
    for (int i = 0; i < 32; i++) out[i] = (float)(int8_t)b[2 + i] * scale;
}

// Eight 6-bit scales and minima from 12 bytes, times the scales of the block.
static void scales_and_minima(const uint8_t *b, float (&scales)[8], float (&minima)[8]) {
    float scale = half(b), minimum = half(b + 2);
    const uint8_t *packed = b + 4;
    for (int i = 0; i < 4; i++) {
        scales[i] = (float)(packed[i] & 63) * scale;
        minima[i] = (float)(packed[4 + i] & 63) * minimum;
        scales[4 + i] = (float)((packed[8 + i] & 15) | (packed[i] >> 2 & 48)) * scale;
        minima[4 + i] = (float)((packed[8 + i] >> 4) | (packed[4 + i] >> 2 & 48)) * minimum;
    }
}

static void q4_k(const uint8_t *b, float *out) {
    float scales[8], minima[8];
    scales_and_minima(b, scales, minima);
    for (int run = 0; run < 4; run++)
        for (int i = 0; i < 32; i++) {
            uint8_t both = b[16 + run * 32 + i];
            out[run * 64 + i] = (float)(both & 15) * scales[2 * run] - minima[2 * run];
            out[run * 64 + 32 + i] = (float)(both >> 4) * scales[2 * run + 1] - minima[2 * run + 1];
        }
}

static void q5_k(const uint8_t *b, float *out) {
    float scales[8], minima[8];
    scales_and_minima(b, scales, minima);
    for (int run = 0; run < 4; run++)
        for (int i = 0; i < 32; i++) {
            uint8_t both = b[48 + run * 32 + i], high = b[16 + i];
            int low = (both & 15) | (high >> (2 * run) & 1) << 4;
            int upper = (both >> 4) | (high >> (2 * run + 1) & 1) << 4;
            out[run * 64 + i] = (float)low * scales[2 * run] - minima[2 * run];
            out[run * 64 + 32 + i] = (float)upper * scales[2 * run + 1] - minima[2 * run + 1];
        }
}

static void q6_k(const uint8_t *b, float *out) {
    float scale = half(b + 208);
    for (int part = 0; part < 2; part++) {
        const uint8_t *low = b + part * 64, *high = b + 128 + part * 32;
        const int8_t *scales = (const int8_t *)b + 192 + part * 8;
        float *y = out + part * 128;
        for (int group = 0; group < 4; group++)
            for (int i = 0; i < 32; i++) {
                uint8_t both = low[group % 2 * 32 + i];
                int nibble = group < 2 ? both & 15 : both >> 4;
                int number = (nibble | (high[i] >> (2 * group) & 3) << 4) - 32;
                y[group * 32 + i] = (float)number * ((float)scales[group * 2 + i / 16] * scale);
            }
    }
}

template <class F>
static void decode_each(F decode, BlockShape shape, const uint8_t *blocks, int64_t count, void *out, int bf16) {
    float numbers[256];
    for (int64_t block = 0; block < count; block++, blocks += shape.bytes) {
        if (!bf16) {
            decode(blocks, (float *)out + block * shape.elements);
            continue;
        }
        decode(blocks, numbers);
        uint16_t *narrowed = (uint16_t *)out + block * shape.elements;
        for (int64_t i = 0; i < shape.elements; i += LANES) put_all(narrowed + i, load(numbers + i));
    }
}

static void decode(int type, const uint8_t *blocks, int64_t count, void *out, int bf16) {
    BlockShape shape = BLOCK_SHAPES[type];
    switch (type) {
        case Q4_0: return decode_each(q4_0, shape, blocks, count, out, bf16);
        case Q5_0: return decode_each(q5_0, shape, blocks, count, out, bf16);
        case Q8_0: return decode_each(q8_0, shape, blocks, count, out, bf16);
        case Q4_K: return decode_each(q4_k, shape, blocks, count, out, bf16);
        case Q5_K: return decode_each(q5_k, shape, blocks, count, out, bf16);
        case Q6_K: return decode_each(q6_k, shape, blocks, count, out, bf16);
        default: return;
    }
}
