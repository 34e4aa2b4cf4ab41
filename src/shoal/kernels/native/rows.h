// What is done to one row at a time: norm, rotary turn with the write of K and V, activation.
#pragma once
#include "abi.h"
#include "vectors.h"

// x / sqrt(mean(x^2) + epsilon) * weight. Squares are summed in LANES chains, then as a tree.
template <class X>
static void norm_to(const float *x, const float *weight, X *out, int64_t size, float epsilon) {
    Vec squares = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        Vec v = load(x + i);
        squares = fma(v, v, squares);
    }
    float rest[LANES] = {};
    memcpy(rest, x + i, (size - i) * sizeof(float));
    squares = fma(load(rest), load(rest), squares);
    float factor = 1.0f / __builtin_sqrtf(sum(squares) / (float)size + epsilon);
    for (i = 0; i + LANES <= size; i += LANES) put_all(out + i, load(x + i) * splat(factor) * load(weight + i));
    for (; i < size; i++) put(out + i, x[i] * factor * weight[i]);
}

static void norm(const float *x, const float *weight, void *out, int64_t size, float epsilon, int bf16) {
    if (bf16) norm_to(x, weight, (uint16_t *)out, size, epsilon);
    else norm_to(x, weight, (float *)out, size, epsilon);
}

// Each pair (x[i], x[i + size / 2]) by its angle.
INLINE void turn(float *x, const float *cosine, const float *sine, int64_t size) {
    int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosine[i] - second * sine[i];
        x[i + half] = second * cosine[i] + first * sine[i];
    }
}

static void narrow(const float *x, uint16_t *out, int64_t size) {
    for (int64_t i = 0; i < size; i++) put(out + i, x[i]);
}

INLINE int64_t padded(int64_t size) { return (size + TILE - 1) / TILE * TILE; }

// A page of keys: tiles of 16 positions, (head_size, 16) each. A page of values: (page_size, padded head_size).
INLINE int64_t key_page(const Cache &cache, int64_t size) { return padded(cache.page_size) * size; }
INLINE int64_t value_page(const Cache &cache, int64_t size) { return cache.page_size * padded(size); }

// From a page to the next and from a head to the next, in numbers, where a head's part of a page has so many.
INLINE int64_t page_stride(const Cache &cache, int64_t numbers) { return cache.stride ? cache.stride : numbers; }
INLINE int64_t head_stride(const Cache &cache, int64_t numbers) {
    return cache.stride ? numbers : cache.pages * numbers;
}

template <class T>
static void place_as(const Work *w, const Layer *l, int64_t row) {
    int64_t size = l->head_size, half = size / 2, run = w->run_of_row[row], position = w->step.position[row];
    float *q = w->wide + row * (l->heads + 2 * l->kv_heads) * size, *k = q + l->heads * size;
    const float *v = k + l->kv_heads * size;
    const Turns &turns = w->step.turns[l->rotary];
    const float *cosine = turns.cosine + position * half, *sine = turns.sine + position * half;
    for (int64_t h = 0; h < l->heads + l->kv_heads; h++) {
        const float *weight = h < l->heads ? l->query_norm : l->key_norm;
        if (weight) norm_to(q + h * size, weight, q + h * size, size, l->epsilon);
        turn(q + h * size, cosine, sine, size);
    }
    int64_t page = position / w->cache.page_size;
    page = w->step.place ? w->step.place[run] + page : w->step.pages[w->step.first_page[run] + page];
    int64_t slot = position % w->cache.page_size;
    bool bf16 = sizeof(T) == 2;
    int64_t keys = key_page(w->cache, size), values = value_page(w->cache, size);
    for (int64_t h = 0; h < l->kv_heads; h++) {
        T *key = (T *)l->keys + page * page_stride(w->cache, keys) + h * head_stride(w->cache, keys) +
                 slot / TILE * TILE * size + place_in_tile((int)(slot % TILE), bf16);
        for (int64_t i = 0; i < size; i++) put(key + i * TILE, k[h * size + i]);
        T *value = (T *)l->values + page * page_stride(w->cache, values) + h * head_stride(w->cache, values) +
                   slot * padded(size);
        for (int64_t i = 0; i < padded(size); i++)
            put(value + i / TILE * TILE + place_in_tile((int)(i % TILE), bf16), i < size ? v[h * size + i] : 0.0f);
    }
}

static void place(const Work *w, const Layer *l, int64_t row) {
    if (w->model->bf16) place_as<uint16_t>(w, l, row);
    else place_as<float>(w, l, row);
}

// activation(gate) * up; gelu_tanh(x) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
INLINE Vec activated(Vec gate, Vec up, int64_t activation) {
    Vec u = -gate;
    if (activation) {
        Vec cubic = fma(gate * gate, gate * splat(0.044715f), gate);
        u = cubic * splat(-1.5957691216057308f);
    }
    return gate / (splat(1.0f) + exponential(u)) * up;
}

template <class X>
static void activate_to(const float *gate_up, X *out, int64_t size, int64_t activation) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        put_all(out + i, activated(load(gate_up + i), load(gate_up + size + i), activation));
    if (i < size) {
        float gate[LANES] = {}, up[LANES] = {}, both[LANES];
        memcpy(gate, gate_up + i, (size - i) * sizeof(float));
        memcpy(up, gate_up + size + i, (size - i) * sizeof(float));
        store(both, activated(load(gate), load(up), activation));
        for (int c = 0; i < size; c++, i++) put(out + i, both[c]);
    }
}

static void activate(const float *gate_up, void *out, int64_t size, int64_t activation, int bf16) {
    if (bf16) activate_to(gate_up, (uint16_t *)out, size, activation);
    else activate_to(gate_up, (float *)out, size, activation);
}
