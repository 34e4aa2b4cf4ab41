// Products with packed matrices. An output is one accumulator, k ascending, whatever the number of rows: a tile
// of rows and columns decides only which outputs are worked on together, and a cut in k only when an accumulator
// waits in memory for its next term.
#pragma once
#include "abi.h"
#include "rows.h"
#include "vectors.h"

constexpr int64_t FEW = 2;       // rows that wait for memory more than for sums: they take two tiles at once
constexpr int64_t AHEAD = 1024;  // bytes between what is multiplied for few rows and what is fetched

// What is fetched while something else is multiplied: `pace` numbers for every k, of each tile.
template <class T>
struct Fetch {
    const T *from;
    int64_t pace;
};

// acc[row][tile * NV + vector] += a[row][k] * b[tile][k][...] for k = 0 .. count - 1.
template <int ROWS, int TILES, class T>
INLINE void accumulate(Vec (&acc)[ROWS][TILES * NV], const float *a, ptrdiff_t a_stride, const T *b,
                       ptrdiff_t tile_stride, ptrdiff_t k_stride, int64_t count, Fetch<T> next = {}) {
    // Where sums leave too few registers for all of w, tiles take turns.
    constexpr int HELD = (ROWS + 1) * TILES * NV < REGISTERS + 4 ? TILES : 1;
    for (int64_t k = 0; k < count; k++)
#pragma GCC unroll 8
        for (int first = 0; first < TILES; first += HELD) {
            Vec w[HELD * NV];
#pragma GCC unroll 8
            for (int tile = 0; tile < HELD; tile++) {
                const T *at = b + (first + tile) * tile_stride;
                load_tile(at + k * k_stride, w + tile * NV);
                if (ROWS <= FEW) __builtin_prefetch(at + k * k_stride + AHEAD / sizeof(T));
                else if (next.from) __builtin_prefetch(next.from + tile * tile_stride + k * next.pace, 0, 2);
            }
#pragma GCC unroll 28
            for (int row = 0; row < ROWS; row++) {
                Vec x = splat(a[row * a_stride + k]);
#pragma GCC unroll 16
                for (int v = 0; v < HELD * NV; v++)
                    acc[row][first * NV + v] = fma(x, w[v], acc[row][first * NV + v]);
            }
        }
}

#ifdef PAIRS
// The same for bf16 rows: two k at a time, which lie side by side in both; a last odd one is paired with nothing.
template <int ROWS, int TILES>
INLINE void accumulate(Vec (&acc)[ROWS][TILES * NV], const uint16_t *a, ptrdiff_t a_stride, const uint16_t *b,
                       ptrdiff_t tile_stride, ptrdiff_t, int64_t count, Fetch<uint16_t> next = {}) {
    for (int64_t k = 0; k < count; k += 2) {
        bool whole = k + 1 < count;
        Ints w[TILES * NV];
#pragma GCC unroll 8
        for (int tile = 0; tile < TILES; tile++) {
            load_pairs(b + tile * tile_stride + k * TILE, whole, w + tile * NV);
            if (next.from) __builtin_prefetch(next.from + tile * tile_stride + k * next.pace, 0, 2);
        }
#pragma GCC unroll 28
        for (int row = 0; row < ROWS; row++) {
            Ints x = splat_pair(a + row * a_stride + k, whole);
#pragma GCC unroll 16
            for (int v = 0; v < TILES * NV; v++) acc[row][v] = dot(acc[row][v], x, w[v]);
        }
    }
}
#endif

// What a product's rows are made of.
template <class T> struct RowsOf { using Type = float; };
#ifdef PAIRS
template <> struct RowsOf<uint16_t> { using Type = uint16_t; };
#endif

constexpr int64_t MOST_HEIGHT = 128;         // rows of a chunk
constexpr int64_t K_BYTES = 16 << 10;        // of a tile that stay in the nearest cache while rows pass by
constexpr int64_t CHUNK_FLOATS = 64 << 10;   // of x that stay in the next one while tiles pass by

template <int TILES>
constexpr int most_rows() {
    constexpr int most = REGISTERS / (TILES * NV);
    return most < 1 ? 1 : most > 14 ? 14 : most;
}

// out[r][TILES * 16] (+)= rows r of x times a cut of `TILES` neighbouring tiles.
template <int ROWS, int TILES, class T, class X>
INLINE void product_block(const X *x, ptrdiff_t x_stride, const T *b, ptrdiff_t tile_stride, int64_t count,
                          Fetch<T> next, float *out, bool add) {
    Vec acc[ROWS][TILES * NV] = {};
    if (add) {
#pragma GCC unroll 28
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int v = 0; v < TILES * NV; v++) acc[r][v] = load(out + (r * TILES * NV + v) * LANES);
    }
    accumulate<ROWS, TILES>(acc, x, x_stride, b, tile_stride, TILE, count, next);
#pragma GCC unroll 28
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < TILES * NV; v++) store(out + (r * TILES * NV + v) * LANES, acc[r][v]);
}

// One function for each number of rows that the registers hold.
template <int TILES, class T, class X>
static void product_some(int rows, const X *x, ptrdiff_t x_stride, const T *b, ptrdiff_t tile_stride, int64_t count,
                         Fetch<T> next, float *out, bool add) {
    switch (rows) {
#define CASE(n) \
    case n: if constexpr (n <= most_rows<TILES>()) \
            product_block<n, TILES>(x, x_stride, b, tile_stride, count, next, out, add); return;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
        CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
    }
}

// All rows of a chunk against `TILES` tiles from `tile` on, `apart` tiles from one to the next, in blocks of nearly
// equal height: out[row][TILES * 16]. Meanwhile those from `next` on are fetched, each block of rows its part.
template <int TILES, class T>
static void product_tiles(const Product *p, int64_t begin, int64_t end, int64_t tile, int64_t apart, int64_t next,
                          float *out) {
    using X = typename RowsOf<T>::Type;
    const Matrix *m = p->matrix;
    const T *b = (const T *)m->data + tile * m->inputs * TILE;
    const T *then = (const T *)m->data + next * m->inputs * TILE;
    const X *x = (const X *)p->x + begin * p->x_stride;
    int64_t rows = end - begin, blocks = (rows + most_rows<TILES>() - 1) / most_rows<TILES>();
    int64_t pace = blocks > 0 ? (TILE + blocks - 1) / blocks : 0;
    int64_t cut = rows <= most_rows<TILES>() ? m->inputs : K_BYTES / (TILE * TILES * (int64_t)sizeof(T));
    for (int64_t k = 0; k < m->inputs || k == 0; k += cut) {
        int64_t count = m->inputs - k < cut ? m->inputs - k : cut;
        for (int64_t i = 0; i < blocks; i++) {
            int64_t first = rows * i / blocks, last = rows * (i + 1) / blocks;
            Fetch<T> fetch = {then + (i * m->inputs + k) * pace, pace};
            product_some<TILES>((int)(last - first), x + first * p->x_stride + k, p->x_stride, b + k * TILE,
                                apart * m->inputs * TILE, count, fetch, out + first * TILES * TILE, k > 0);
        }
    }
}

template <class T>
INLINE void add_bias(const Matrix *m, int64_t column, float *sums, int64_t rows, ptrdiff_t stride) {
    if (!m->bias) return;
    for (int64_t row = 0; row < rows; row++, sums += stride)
        for (int c = 0; c < TILE && column + c < m->outputs; c++) sums[c] += number((const T *)m->bias + column + c);
}

// Sums of a tile, rows `stride` apart, to where they belong.
static void leave(const Product *p, int64_t begin, int64_t end, int64_t tile, float *sums, ptrdiff_t stride) {
    int64_t column = tile * TILE, columns = p->matrix->outputs - column < TILE ? p->matrix->outputs - column : TILE;
    for (int64_t row = begin; row < end; row++, sums += stride) {
        float *y = (float *)p->y + row * p->y_stride + column;
        if (columns < TILE)
            for (int c = 0; c < columns; c++) y[c] = p->epilogue == ADD ? y[c] + sums[c] : sums[c];
        else
            for (int c = 0; c < TILE; c += LANES)
                store(y + c, p->epilogue == ADD ? load(y + c) + load(sums + c) : load(sums + c));
    }
}

// The gate's sums of a tile, and those of the other half, to the activation of the one times the other.
template <class T>
static void leave_gated(const Product *p, int64_t begin, int64_t end, int64_t tile, float *gate, float *up,
                        ptrdiff_t stride) {
    using X = typename RowsOf<T>::Type;
    const Matrix *m = p->matrix;
    int64_t column = tile * TILE;
    add_bias<T>(m, column, gate, end - begin, stride);
    add_bias<T>(m, m->outputs / 2 + column, up, end - begin, stride);
    for (int64_t row = begin; row < end; row++, gate += stride, up += stride) {
        X *y = (X *)p->y + row * p->y_stride + column;
        for (int c = 0; c < TILE; c += LANES)
            put_all(y + c, activated(load(gate + c), load(up + c), p->activation));
    }
}

// The largest of a tile's sums, where it is larger than what this thread has seen in tiles before.
static void leave_best(const Product *p, int64_t begin, int64_t end, int64_t tile, float *sums, ptrdiff_t stride) {
    int64_t column = tile * TILE, columns = p->matrix->outputs - column < TILE ? p->matrix->outputs - column : TILE;
    for (int64_t row = begin; row < end; row++, sums += stride) {
        Best &best = ((Best *)p->y)[row];
        Ints higher = {};
        for (int c = 0; c < TILE; c += LANES) higher |= ~(load(sums + c) <= splat(best.value));
        if (best.output >= 0 && !any(higher)) continue;
        for (int c = 0; c < columns; c++)
            if (best.output < 0 || sums[c] > best.value || sums[c] != sums[c])
                best = {sums[c], (int32_t)(column + c)};
    }
}

template <class T>
static void leave_as(const Product *p, int64_t begin, int64_t end, int64_t tile, float *sums, ptrdiff_t stride) {
    add_bias<T>(p->matrix, tile * TILE, sums, end - begin, stride);
    if (p->epilogue == BEST) leave_best(p, begin, end, tile, sums, stride);
    else leave(p, begin, end, tile, sums, stride);
}

// Few rows take two tiles at once, so that enough sums are under way; so do vectors as wide as a tile.
INLINE int64_t tiles_at_once(int64_t rows) { return rows <= FEW || LANES == 16 ? 2 : 1; }

template <class T>
static void product_range(const Product *p, int64_t begin, int64_t end, int64_t tile, int64_t last) {
    alignas(64) float sums[2 * MOST_HEIGHT * TILE];
    int64_t rows = end - begin, half = p->matrix->outputs / TILE / 2;
    bool two = tiles_at_once(rows) == 2;
    while (tile < last) {
        if (p->epilogue == GATE && two) {
            product_tiles<2, T>(p, begin, end, tile, half, tile + 1, sums);
            leave_gated<T>(p, begin, end, tile, sums, sums + TILE, 2 * TILE);
            tile += 1;
        } else if (p->epilogue == GATE) {
            product_tiles<1, T>(p, begin, end, tile, 1, tile + half, sums);
            product_tiles<1, T>(p, begin, end, tile + half, 1, tile + 1, sums + rows * TILE);
            leave_gated<T>(p, begin, end, tile, sums, sums + rows * TILE, TILE);
            tile += 1;
        } else if (two && last - tile >= 2) {
            product_tiles<2, T>(p, begin, end, tile, 1, tile + 2, sums);
            leave_as<T>(p, begin, end, tile, sums, 2 * TILE);
            leave_as<T>(p, begin, end, tile + 1, sums + TILE, 2 * TILE);
            tile += 2;
        } else {
            product_tiles<1, T>(p, begin, end, tile, 1, tile + 1, sums);
            leave_as<T>(p, begin, end, tile, sums, TILE);
            tile += 1;
        }
    }
}

// Tasks are (chunk of rows, group of tiles), taken as threads come free.
template <class T>
static void product_all(const Product *p) {
    const Matrix *m = p->matrix;
    int64_t tiles = p->epilogue == GATE ? m->outputs / TILE / 2 : (m->outputs + TILE - 1) / TILE;
    int64_t height = CHUNK_FLOATS / (m->inputs > 0 ? m->inputs : 1);
    height = height < 48 ? 48 : height > MOST_HEIGHT ? MOST_HEIGHT : height;
    int64_t chunks = (p->rows + height - 1) / height;
    if (chunks < 1) return;
    int64_t each = p->rows <= FEW ? 1 : 16;  // groups a thread: memory comes fastest in long stretches
    int64_t wanted = (each * p->threads + chunks - 1) / chunks;  // groups a chunk
    int64_t group = (tiles + wanted - 1) / wanted;
    int64_t at_once = p->epilogue == GATE ? 1 : tiles_at_once(p->rows / chunks);
    group = (group + at_once - 1) / at_once * at_once;
    int64_t groups = (tiles + group - 1) / group;
    for (;;) {
        int64_t task = __atomic_fetch_add(p->counter, 1, __ATOMIC_RELAXED);
        if (task >= chunks * groups) return;
        int64_t chunk = task / groups, first = task % groups * group;
        int64_t last = first + group < tiles ? first + group : tiles;
        product_range<T>(p, p->rows * chunk / chunks, p->rows * (chunk + 1) / chunks, first, last);
    }
}

static void product(const Product *p, int bf16) {
    if (bf16) product_all<uint16_t>(p);
    else product_all<float>(p);
}

// Where in a packed tile output `row` has its k. Pairs lie as (inputs / 2, 16, 2), a last odd k as (16,).
INLINE int64_t at_in_tile(int64_t k, int row, int64_t inputs, bool half) {
#ifdef PAIRS
    if (half) return k + 1 < inputs || k % 2 ? k / 2 * 2 * TILE + 2 * row + k % 2 : k * TILE + row;
#endif
    return k * TILE + place_in_tile(row, half);
}

// Rows of a matrix to tiles, in place; storage reaches to a whole number of tiles. scratch: a tile.
template <class T>
static void pack_tiles(T *data, int64_t outputs, int64_t inputs, T *scratch) {
    bool half = sizeof(T) == 2;
    for (int64_t first = 0; first < outputs; first += TILE, data += TILE * inputs) {
        int rows = outputs - first < TILE ? (int)(outputs - first) : TILE;
        memcpy(scratch, data, rows * inputs * sizeof(T));
        if (rows < TILE) memset(data, 0, TILE * inputs * sizeof(T));
        for (int row = 0; row < rows; row++)
            for (int64_t k = 0; k < inputs; k++) data[at_in_tile(k, row, inputs, half)] = scratch[row * inputs + k];
    }
}

static void pack(void *data, int64_t outputs, int64_t inputs, int bf16, void *scratch) {
    if (bf16) pack_tiles((uint16_t *)data, outputs, inputs, (uint16_t *)scratch);
    else pack_tiles((float *)data, outputs, inputs, (float *)scratch);
}

static void unpack_row(const Matrix *m, int bf16, int64_t row, float *out) {
    int64_t start = row / TILE * TILE * m->inputs;
    for (int64_t k = 0; k < m->inputs; k++) {
        int64_t at = start + at_in_tile(k, (int)(row % TILE), m->inputs, bf16);
        out[k] = bf16 ? number((const uint16_t *)m->data + at) : ((const float *)m->data)[at];
    }
}
