// One block of positions of one head of K and V: where it lies, the scores of queries with its keys, and its values
// mixed by weights.
#pragma once
#include "abi.h"
#include "product.h"
#include "rows.h"
#include "vectors.h"

constexpr int64_t SPLIT = 128;
constexpr int64_t SCORES = TILE + SPLIT + TILE;  // a row of scores: a tile may begin before its block or end after

// Where the positions of one head of one run lie.
template <class T>
struct Pages {
    const T *keys, *values;
    const int32_t *ids;  // null: one after the other
    int64_t page_size, size, key_page, value_page;
};

template <class T>
static Pages<T> pages_of(const Work *w, const Layer *l, int64_t head, int64_t sorted) {
    Pages<T> p;
    p.page_size = w->cache.page_size;
    p.size = l->head_size;
    int64_t run = w->order[sorted], keys = key_page(w->cache, p.size), values = value_page(w->cache, p.size);
    p.key_page = page_stride(w->cache, keys);
    p.value_page = page_stride(w->cache, values);
    int64_t first = w->step.place ? w->step.place[run] : 0;
    p.keys = (const T *)l->keys + first * p.key_page + head * head_stride(w->cache, keys);
    p.values = (const T *)l->values + first * p.value_page + head * head_stride(w->cache, values);
    p.ids = w->step.place ? nullptr : w->step.pages + w->step.first_page[run];
    return p;
}

// Positions low .. high of one block: tiles of keys, and stretches of values on one page.
template <class T>
struct Block {
    int64_t start, low, high, size, tiles, stretches;
    struct { const T *at; int64_t first; } key[SPLIT];     // first: its position less start; the tile goes on to 16
    struct { const T *at; int64_t first, count; } value[SPLIT];
};

template <class T>
static void find(Block<T> &b, const Pages<T> &p) {
    b.size = p.size;
    b.tiles = b.stretches = 0;
    int64_t index = b.low / p.page_size;
    for (int64_t position = b.low, slot = b.low % p.page_size; position < b.high; index++, slot = 0) {
        int64_t page = p.ids ? p.ids[index] : index;
        int64_t count = p.page_size - slot < b.high - position ? p.page_size - slot : b.high - position;
        b.value[b.stretches++] = {p.values + page * p.value_page + slot * padded(p.size), position - b.start, count};
        for (int64_t at = slot / TILE * TILE; at < slot + count; at += TILE)
            b.key[b.tiles++] = {p.keys + page * p.key_page + at * p.size, position - slot + at - b.start};
        position += count;
    }
}

// Memory that is read soon, on its way to the nearer caches. Pages are short, and no processor guesses the next.
INLINE void fetch_bytes(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 2);
}

template <class T>
static void fetch_values(const Block<T> &b) {
    for (int64_t i = 0; i < b.stretches; i++)
        fetch_bytes(b.value[i].at, b.value[i].count * padded(b.size) * (int64_t)sizeof(T));
}

// Keys of the positions from .. high.
template <class T>
static void fetch_keys(const Pages<T> &p, int64_t from, int64_t high) {
    for (int64_t index = from / p.page_size; index * p.page_size < high; index++) {
        int64_t page = p.ids ? p.ids[index] : index, left = high - index * p.page_size;
        int64_t slots = left < p.page_size ? (left + TILE - 1) / TILE * TILE : p.page_size;
        fetch_bytes(p.keys + page * p.key_page, slots * p.size * (int64_t)sizeof(T));
    }
}

template <int ROWS, int TILES, class T>
INLINE void score_rows(const float *query, const Block<T> &b, int64_t tile, float *scores) {
    const T *keys[TILES];
    for (int i = 0; i < TILES; i++) keys[i] = b.key[tile + i].at;
    Vec acc[ROWS][TILES * NV] = {};
    for (int64_t k = 0; k < b.size; k++) {
#pragma GCC unroll 8
        for (int i = 0; i < TILES; i++) {
            Vec w[NV];
            load_tile(keys[i] + k * TILE, w);
#pragma GCC unroll 28
            for (int row = 0; row < ROWS; row++) {
                Vec x = splat(query[row * b.size + k]);
#pragma GCC unroll 16
                for (int v = 0; v < NV; v++) acc[row][i * NV + v] = fma(x, w[v], acc[row][i * NV + v]);
            }
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < TILES * NV; v++) store(scores + row * SCORES + v * LANES, acc[row][v]);
}

// out[row] = weights[row] . values of `TILES` tiles of columns, row by row of values on whatever page it lies.
template <int ROWS, int TILES, class T>
INLINE void mix_rows(const float *weights, const Block<T> &b, int64_t column, float *out) {
    int64_t width = padded(b.size);
    Vec acc[ROWS][TILES * NV] = {};
    for (int64_t i = 0; i < b.stretches; i++)
        accumulate<ROWS, TILES>(acc, weights + b.value[i].first, SCORES, b.value[i].at + column, TILE, width,
                                b.value[i].count);
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < TILES * NV; v++) store(out + row * width + v * LANES, acc[row][v]);
}

// call<ROWS>(first row) over `rows` rows in parts of nearly equal height that the registers hold.
template <int TILES, class F>
INLINE void in_parts(int64_t rows, F call) {
    constexpr int MOST = most_rows<TILES>();
    int64_t parts = (rows + MOST - 1) / MOST;
    for (int64_t i = 0; i < parts; i++) {
        int64_t first = rows * i / parts;
        switch (rows * (i + 1) / parts - first) {
#define CASE(n) \
    case n: if constexpr (n <= MOST) call.template operator()<n>(first); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
            CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
        }
    }
}

template <int TILES, class T>
static void score_tiles(const float *query, int64_t n, const Block<T> &b, int64_t tile, float *scores) {
    scores += TILE + b.key[tile].first;
    in_parts<TILES>(n, [&]<int ROWS>(int64_t first) {
        score_rows<ROWS, TILES>(query + first * b.size, b, tile, scores + first * SCORES);
    });
}

// scores[i][position - block start + TILE] = query . key. Few queries take more tiles at once, so that enough sums
// are under way; tiles are taken together where their scores lie side by side.
template <class T>
static void score(const float *query, int64_t n, const Block<T> &b, float *scores) {
    auto beside = [&](int64_t tile, int64_t count) {
        return tile + count <= b.tiles && b.key[tile + count - 1].first == b.key[tile].first + (count - 1) * TILE;
    };
    for (int64_t tile = 0; tile < b.tiles;) {
        if (n * 4 * NV <= REGISTERS && beside(tile, 4)) {
            score_tiles<4>(query, n, b, tile, scores);
            tile += 4;
        } else if (n * 2 * NV <= REGISTERS && beside(tile, 2)) {
            score_tiles<2>(query, n, b, tile, scores);
            tile += 2;
        } else {
            score_tiles<1>(query, n, b, tile, scores);
            tile += 1;
        }
    }
}

// Scores of one row to weights: e^(score - highest) where it sees the position, 0 elsewhere in low .. high.
static void weigh(float *scores, int64_t low, int64_t high, int64_t sees, int64_t until, float *highest,
                  float *total) {
    for (int64_t i = low / TILE * TILE; i < sees; i++) scores[i] = -__builtin_inff();
    int64_t end = (high + TILE - 1) / TILE * TILE;
    for (int64_t i = until; i < end; i++) scores[i] = -__builtin_inff();
    low = low / TILE * TILE;
    Vec top = splat(-__builtin_inff());
    for (int64_t i = low; i < end; i += LANES) top = largest(load(scores + i), top);
    *highest = most(top);
    Vec added = {}, shift = splat(*highest);
    for (int64_t i = low; i < end; i += LANES) {
        Vec weight = exponential(load(scores + i) - shift);
        store(scores + i, weight);
        added = added + weight;
    }
    *total = sum(added);
}

// out[i] = weights[i] . values.
template <class T>
static void mix(const float *weights, int64_t n, const Block<T> &b, float *out) {
    int64_t width = padded(b.size), column = 0;
    weights += TILE;
    for (; (n * 2 * NV <= REGISTERS || LANES == 16) && column + 2 * TILE <= width; column += 2 * TILE)
        in_parts<2>(n, [&]<int ROWS>(int64_t first) {
            mix_rows<ROWS, 2>(weights + first * SCORES, b, column, out + first * width + column);
        });
    for (; column < width; column += TILE)
        in_parts<1>(n, [&]<int ROWS>(int64_t first) {
            mix_rows<ROWS, 1>(weights + first * SCORES, b, column, out + first * width + column);
        });
}
