// Attention over pages. Positions are cut into absolute blocks of SPLIT; each gives (max, sum, output) and blocks
// are merged in ascending order, so the result of a row depends on its own positions alone: not on the rows beside
// it, on pages, chunks or who shares them. A masked position adds exactly zero.
//
// Rows whose block lies on the same pages are scored together, whichever sequence they belong to (Juravsky et al.
// 2024, "Hydragen", arXiv 2402.05099: one product for all queries of a shared prefix; here at every depth of
// sharing). The query heads of one head of K and V are more rows of that product.
#pragma once
#include "abi.h"
#include "product.h"
#include "rows.h"
#include "vectors.h"

constexpr int64_t SPLIT = 128;
constexpr int64_t SCORES = TILE + SPLIT + TILE;  // a row of scores: a tile may begin before its block or end after
constexpr int64_t TASK_ROWS = 32;

// A task's share of a thread's scratch. n = rows * queries a head of K and V.
struct Desk {
    float *query;    // (n, size)
    float *scores;   // (n, SCORES)
    float *output;   // (n, padded size), of blocks merged so far
    float *block;    // (n, padded size), of this block
    float *highest, *total;              // (n,), of blocks merged so far
    float *block_highest, *block_total;  // (n,), of this block
};

static int64_t attend_scratch(const Work *w) {
    int64_t most = 0;
    for (int64_t i = 0; i < w->model->layer_count; i++) {
        const Layer &l = w->model->layers[i];
        int64_t n = TASK_ROWS * (l.heads / l.kv_heads);
        int64_t floats = n * (l.head_size + SCORES + 2 * padded(l.head_size) + 4) + 16;
        most = floats > most ? floats : most;
    }
    return most;
}

static Desk desk_of(float *scratch, int64_t n, int64_t size) {
    Desk d;
    d.query = scratch;
    d.scores = d.query + n * size;
    d.output = d.scores + n * SCORES;
    d.block = d.output + n * padded(size);
    d.highest = d.block + n * padded(size);
    d.total = d.highest + n;
    d.block_highest = d.total + n;
    d.block_total = d.block_highest + n;
    return d;
}

// out[row][0 .. TILES * 16] (+)= a[row][0 .. count] . b, rows in blocks that fit the registers.
template <int ROWS, int TILES, class T>
INLINE void small_block(const float *a, ptrdiff_t a_stride, const T *b, ptrdiff_t tile_stride, ptrdiff_t k_stride,
                        int64_t count, float *out, ptrdiff_t out_stride, bool add) {
    Vec acc[ROWS][TILES * NV] = {};
    if (add) {
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < TILES * NV; v++) acc[r][v] = load(out + r * out_stride + v * LANES);
    }
    accumulate<ROWS, TILES>(acc, a, a_stride, b, tile_stride, k_stride, count);
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < TILES * NV; v++) store(out + r * out_stride + v * LANES, acc[r][v]);
}

template <int TILES, class T>
static void small_product(const float *a, ptrdiff_t a_stride, int64_t rows, const T *b, ptrdiff_t tile_stride,
                          ptrdiff_t k_stride, int64_t count, float *out, ptrdiff_t out_stride, bool add) {
    constexpr int MOST = most_rows<TILES>();
    while (rows > 0) {
        int64_t blocks = (rows + MOST - 1) / MOST, taken = (rows + blocks - 1) / blocks;
        switch (taken) {
#define CASE(n) \
    case n: if constexpr (n <= MOST) { \
        small_block<n, TILES>(a, a_stride, b, tile_stride, k_stride, count, out, out_stride, add); } break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
            CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
        }
        a += taken * a_stride;
        out += taken * out_stride;
        rows -= taken;
    }
}

// Where the positions of one head of one run lie.
template <class T>
struct Pages {
    const T *keys, *values;
    const int32_t *ids;
    int64_t page_size, size, key_page, value_page;
};

// scores[i][position - block start + TILE] = query . key for positions low .. high of a block.
template <class T>
static void score(const Desk &d, int64_t first, int64_t n, const Pages<T> &p, int64_t start, int64_t low,
                  int64_t high) {
    const float *query = d.query + first * p.size;
    float *scores = d.scores + first * SCORES + TILE - start;
    while (low < high) {
        int64_t slot = low % p.page_size, tile = slot / TILE, left = p.page_size - tile * TILE;
        const T *keys = p.keys + p.ids[low / p.page_size] * p.key_page + tile * TILE * p.size;
        int64_t at = low - slot % TILE;
        if (left >= 2 * TILE && high - at > TILE) {
            small_product<2>(query, p.size, n, keys, TILE * p.size, TILE, p.size, scores + at, SCORES, false);
            low = at + 2 * TILE;
        } else {
            small_product<1>(query, p.size, n, keys, TILE * p.size, TILE, p.size, scores + at, SCORES, false);
            low = at + (left < TILE ? left : TILE);
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

// block[i] = weights . values for positions low .. high.
template <class T>
static void mix(const Desk &d, int64_t first, int64_t n, const Pages<T> &p, int64_t start, int64_t low,
                int64_t high) {
    int64_t width = padded(p.size);
    bool add = false;
    while (low < high) {
        int64_t slot = low % p.page_size, count = p.page_size - slot < high - low ? p.page_size - slot : high - low;
        const T *values = p.values + p.ids[low / p.page_size] * p.value_page + slot * width;
        const float *weights = d.scores + first * SCORES + TILE + low - start;
        float *out = d.block + first * width;
        int64_t column = 0;
        for (; column + 2 * TILE <= width; column += 2 * TILE)
            small_product<2>(weights, SCORES, n, values + column, TILE, width, count, out + column, width, add);
        if (column < width)
            small_product<1>(weights, SCORES, n, values + column, TILE, width, count, out + column, width, add);
        add = true;
        low += count;
    }
}

// A block's (highest, total, output) into those of the blocks before it.
static void merge(const Desk &d, int64_t i, int64_t width) {
    float before = d.highest[i], now = d.block_highest[i];
    float high = before > now ? before : now;
    Vec kept = exponential(splat(before - high)), taken = exponential(splat(now - high));
    float *output = d.output + i * width;
    const float *block = d.block + i * width;
    for (int64_t c = 0; c < width; c += LANES)
        store(output + c, fma(load(block + c), taken, load(output + c) * kept));
    d.highest[i] = high;
    d.total[i] = d.block_total[i] * taken[0] + d.total[i] * kept[0];
}

// The first position that a row sees.
INLINE int64_t sees_from(const Layer *l, int64_t position) {
    int64_t from = l->window ? position - l->window + 1 : 0;
    return from > 0 ? from : 0;
}

// One block for `count` sorted rows from `from` on, which have it on the same pages; desk rows begin at `first`.
template <class T>
static void attend_block(const Work *w, const Layer *l, const Desk &d, const Pages<T> &p, int64_t from,
                         int64_t first, int64_t count, int64_t block) {
    int64_t start = block * SPLIT, low = start + SPLIT, high = start, share = l->heads / l->kv_heads;
    for (int64_t i = 0; i < count; i++) {
        int64_t position = w->step.position[w->row_order[from + i]], begin = sees_from(l, position);
        low = begin < low ? begin : low;
        high = position + 1 > high ? position + 1 : high;
    }
    low = low > start ? low : start;
    high = high < start + SPLIT ? high : start + SPLIT;
    score(d, first * share, count * share, p, start, low, high);
    for (int64_t i = 0; i < count * share; i++) {
        int64_t position = w->step.position[w->row_order[from + i / share]], begin = sees_from(l, position);
        int64_t sees = begin > start ? begin - start : 0;
        int64_t until = position + 1 < start + SPLIT ? position + 1 - start : SPLIT;
        int64_t at = first * share + i;
        weigh(d.scores + at * SCORES + TILE, low - start, high - start, sees, until, d.block_highest + at,
              d.block_total + at);
    }
    mix(d, first * share, count * share, p, start, low, high);
    for (int64_t i = 0; i < count * share; i++) merge(d, first * share + i, padded(p.size));
}

template <class T>
static Pages<T> pages_of(const Work *w, const Layer *l, int64_t head, int64_t sorted) {
    Pages<T> p;
    p.page_size = w->cache.page_size;
    p.size = l->head_size;
    p.key_page = key_page(w->cache, p.size);
    p.value_page = value_page(w->cache, p.size);
    p.keys = (const T *)l->keys + head * w->cache.pages * p.key_page;
    p.values = (const T *)l->values + head * w->cache.pages * p.value_page;
    p.ids = w->step.pages + w->step.first_page[w->order[sorted]];
    return p;
}

INLINE bool visible(const Layer *l, int64_t position, int64_t block) {
    return position >= block * SPLIT && sees_from(l, position) < (block + 1) * SPLIT;
}

// Every block for sorted rows from .. to of one head of K and V, in ascending order.
template <class T>
static void attend_rows(const Work *w, const Layer *l, const Desk &d, int64_t head, int64_t from, int64_t to) {
    int64_t lowest = INT64_MAX, highest = 0;
    for (int64_t i = from; i < to; i++) {
        int64_t position = w->step.position[w->row_order[i]], begin = sees_from(l, position) / SPLIT;
        lowest = begin < lowest ? begin : lowest;
        highest = position / SPLIT > highest ? position / SPLIT : highest;
    }
    for (int64_t block = lowest; block <= highest; block++)
        for (int64_t i = from; i < to;) {
            if (!visible(l, w->step.position[w->row_order[i]], block)) {
                i++;
                continue;
            }
            int64_t end = i + 1;
            while (end < to && visible(l, w->step.position[w->row_order[end]], block) &&
                   (w->sorted_run[end] == w->sorted_run[end - 1] || w->common[w->sorted_run[end]] > block))
                end++;
            attend_block(w, l, d, pages_of<T>(w, l, head, w->sorted_run[i]), i, i - from, end - i, block);
            i = end;
        }
}

// Queries of sorted rows to the desk, and their results from it. Adding nothing turns -0 into 0.
static void fetch(const Work *w, const Layer *l, const Desk &d, int64_t head, int64_t from, int64_t to) {
    int64_t share = l->heads / l->kv_heads, size = l->head_size, row_size = (l->heads + 2 * l->kv_heads) * size;
    for (int64_t i = 0; i < (to - from) * share; i++) {
        const float *q = w->wide + w->row_order[from + i / share] * row_size + (head * share + i % share) * size;
        for (int64_t c = 0; c < size; c++) d.query[i * size + c] = q[c] * l->scale;
        memset(d.output + i * padded(size), 0, padded(size) * sizeof(float));
        d.highest[i] = -__builtin_inff();
        d.total[i] = 0.0f;
    }
}

static void deliver(const Work *w, const Layer *l, const Desk &d, int64_t head, int64_t from, int64_t to) {
    int64_t share = l->heads / l->kv_heads, size = l->head_size;
    for (int64_t i = 0; i < (to - from) * share; i++) {
        float *out = w->mixed + (w->row_order[from + i / share] * l->heads + head * share + i % share) * size;
        const float *output = d.output + i * padded(size);
        for (int64_t c = 0; c < size; c++) out[c] = output[c] / d.total[i] + 0.0f;
    }
}

// Tasks are (head of K and V, some sorted rows).
static void attend(const Work *w, const Layer *l, int *counter, int thread) {
    int64_t rows = w->step.rows, wanted = (4 * w->threads + l->kv_heads - 1) / l->kv_heads;
    int64_t height = (rows + wanted - 1) / wanted;
    height = height < 4 ? 4 : height > TASK_ROWS ? TASK_ROWS : height;
    int64_t chunks = (rows + height - 1) / height;
    int64_t n = height * (l->heads / l->kv_heads);
    Desk d = desk_of(w->scratch + thread * w->scratch_size, n, l->head_size);
    for (;;) {
        int64_t task = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
        if (task >= chunks * l->kv_heads) return;
        int64_t head = task / chunks, from = task % chunks * height;
        int64_t to = from + height < rows ? from + height : rows;
        fetch(w, l, d, head, from, to);
        if (w->model->bf16) attend_rows<uint16_t>(w, l, d, head, from, to);
        else attend_rows<float>(w, l, d, head, from, to);
        deliver(w, l, d, head, from, to);
    }
}
