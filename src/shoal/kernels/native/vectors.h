// Vectors of LANES floats, as wide as the instruction set the including file is compiled for.
//
// Every sum in the kernels is a chain of fma() in a fixed order, never left to the compiler: files are compiled
// with -ffp-contract=off, and fma() is fused exactly where the instruction set has it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef LANES
#error "LANES is said by the file of the instruction set"
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

constexpr int TILE = 16;              // columns of a packed matrix, positions of a packed page of keys
constexpr int NV = TILE / LANES;      // vectors of a tile
constexpr int REGISTERS = LANES == 16 ? 28 : 12;  // accumulators that leave room for operands

INLINE Vec splat(float x) { return x - Vec{}; }
INLINE Vec load(const float *p) { Vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, Vec v) { memcpy(p, &v, sizeof v); }

INLINE Vec fma(Vec a, Vec b, Vec c) {
#if LANES == 16 && defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8 && defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE Vec largest(Vec a, Vec b) { return a > b ? a : b; }

// Lanes are added by halves: the same tree whatever came before.
INLINE float sum(Vec v) {
    float lane[LANES];
    store(lane, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

INLINE float most(Vec v) {
    float lane[LANES];
    store(lane, v);
    float found = lane[0];
    for (int i = 1; i < LANES; i++) found = lane[i] > found ? lane[i] : found;
    return found;
}

INLINE bool any(Ints v) {
    int32_t lane[LANES], found = 0;
    memcpy(lane, &v, sizeof v);
    for (int i = 0; i < LANES; i++) found |= lane[i];
    return found;
}

// e^x to about two units in the last place; exactly 0 below -87.3. x = n ln 2 + r, e^r by its series to r^7.
INLINE Vec exponential(Vec x) {
    const Vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    Vec y = x > splat(88.0f) ? splat(88.0f) : x;
    Vec t = fma(y, splat(1.44269504088896341f), shift);
    Ints n = (Ints)t - (Ints)shift;
    t = t - shift;
    Vec r = fma(t, splat(-0.693145751953125f), y);
    r = fma(t, splat(-1.42860682030941723e-6f), r);
    Vec p = splat(1.0f / 5040);
    p = fma(p, r, splat(1.0f / 720));
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    Vec scaled = p * (Vec)((n + 127) << 23);
    return x < splat(-87.3f) ? splat(0.0f) : scaled;
}

// A tile of 16 numbers as NV vectors. bf16 tiles of the 8-lane kernels hold columns i and i + 8 side by side,
// so that a shift and a mask give both halves; wider and narrower ones hold them in order.
INLINE int place_in_tile(int column, bool bf16) {
    return bf16 && LANES == 8 ? (column < 8 ? 2 * column : 2 * (column - 8) + 1) : column;
}

INLINE void load_tile(const float *p, Vec *v) {
    for (int i = 0; i < NV; i++) v[i] = load(p + i * LANES);
}

INLINE void load_tile(const uint16_t *p, Vec *v) {
#if LANES == 8
    Ints both;
    memcpy(&both, p, sizeof both);
    v[0] = (Vec)(both << 16);
    v[1] = (Vec)(both & (int32_t)0xffff0000);
#else
    typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
    for (int i = 0; i < NV; i++) {
        Half half;
        memcpy(&half, p + i * LANES, sizeof half);
        v[i] = (Vec)(__builtin_convertvector(half, Ints) << 16);
    }
#endif
}

#ifdef PAIRS
// Pairs of bf16 in the lanes of Ints, the first in the lower half.
INLINE void load_pairs(const uint16_t *p, bool whole, Ints *v) {
    uint16_t pairs[2 * TILE] = {};
    if (!whole) {
        for (int i = 0; i < TILE; i++) pairs[2 * i] = p[i];
        p = pairs;
    }
    for (int i = 0; i < NV; i++) memcpy(v + i, p + 2 * i * LANES, sizeof *v);
}

INLINE Ints splat_pair(const uint16_t *p, bool whole) {
    int32_t both = *p;
    if (whole) memcpy(&both, p, sizeof both);
    return both - Ints{};
}

// sum + both products of a pair, the second first.
INLINE Vec dot(Vec sum, Ints a, Ints b) {
#if LANES == 16 && defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const int32_t upper = (int32_t)0xffff0000;
    sum = fma((Vec)(a & upper), (Vec)(b & upper), sum);
    return fma((Vec)(a << 16), (Vec)(b << 16), sum);
#endif
}
#endif

INLINE float number(const float *p) { return *p; }
INLINE float number(const uint16_t *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE void put(float *p, float x) { *p = x; }
// To the nearest, ties to even; what is not a number stays one.
INLINE void put(uint16_t *p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void put_all(float *p, Vec v) { store(p, v); }
INLINE void put_all(uint16_t *p, Vec v) {
    typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
    Ints bits = (Ints)v;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = v == v ? bits : 0x7fc0 - Ints{};
    Half half = __builtin_convertvector(bits, Half);
    memcpy(p, &half, sizeof half);
}
