// Products with packed matrices. An output is one accumulator, k ascending, whatever the number of rows: a tile
// of rows and columns decides only which outputs are worked on together.
#pragma once
#include "abi.h"
#include "vectors.h"

// acc[row][tile * NV + vector] += a[row][k] * b[tile][k][...] for k = 0 .. count - 1.
template <int ROWS, int TILES, class T>
INLINE void accumulate(Vec (&acc)[ROWS][TILES * NV], const float *a, ptrdiff_t a_stride, const T *b,
                       ptrdiff_t tile_stride, ptrdiff_t k_stride, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        Vec w[TILES * NV];
#pragma GCC unroll 8
        for (int tile = 0; tile < TILES; tile++) load_tile(b + tile * tile_stride + k * k_stride, w + tile * NV);
#pragma GCC unroll 28
        for (int row = 0; row < ROWS; row++) {
            Vec x = splat(a[row * a_stride + k]);
#pragma GCC unroll 16
            for (int v = 0; v < TILES * NV; v++) acc[row][v] = fma(x, w[v], acc[row][v]);
        }
    }
}

template <int ROWS, int TILES, class T>
static void product_block(const Product *p, int64_t row, int64_t tile) {
    const Matrix *m = p->matrix;
    const T *b = (const T *)m->data + tile * m->inputs * TILE;
    Vec acc[ROWS][TILES * NV] = {};
    accumulate<ROWS, TILES>(acc, p->x + row * p->x_stride, p->x_stride, b, m->inputs * TILE, TILE, m->inputs);
    for (int t = 0; t < TILES; t++) {
        int64_t column = (tile + t) * TILE, columns = m->outputs - column < TILE ? m->outputs - column : TILE;
        for (int r = 0; r < ROWS; r++) {
            float out[TILE];
            for (int v = 0; v < NV; v++) store(out + v * LANES, acc[r][t * NV + v]);
            float *y = p->y + (row + r) * p->y_stride + column;
            if (m->bias)
                for (int c = 0; c < columns; c++) out[c] += number((const T *)m->bias + column + c);
            if (p->epilogue == ADD)
                for (int c = 0; c < columns; c++) y[c] += out[c];
            else if (columns == TILE)
                memcpy(y, out, sizeof out);
            else
                memcpy(y, out, columns * sizeof(float));
        }
    }
}

template <int TILES>
constexpr int most_rows() {
    constexpr int most = REGISTERS / (TILES * NV);
    return most < 1 ? 1 : most > 14 ? 14 : most;
}

// One function for each number of rows that the registers hold.
template <int TILES, class T>
INLINE void product_some(const Product *p, int64_t row, int64_t tile, int rows) {
    switch (rows) {
#define CASE(n) \
    case n: if constexpr (n <= most_rows<TILES>()) product_block<n, TILES, T>(p, row, tile); return;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
        CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
    }
}

// All rows of a chunk against `TILES` neighbouring tiles, in blocks of nearly equal height.
template <int TILES, class T>
INLINE void product_tiles(const Product *p, int64_t begin, int64_t end, int64_t tile) {
    int64_t rows = end - begin, blocks = (rows + most_rows<TILES>() - 1) / most_rows<TILES>();
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = begin + rows * i / blocks, last = begin + rows * (i + 1) / blocks;
        product_some<TILES, T>(p, first, tile, (int)(last - first));
    }
}

// Few rows take two tiles at once, so that enough sums are under way; so do vectors as wide as a tile.
INLINE int64_t tiles_at_once(int64_t rows) { return rows <= 3 || LANES == 16 ? 2 : 1; }

template <class T>
static void product_range(const Product *p, int64_t begin, int64_t end, int64_t tile, int64_t last) {
    bool two = tiles_at_once(end - begin) == 2;
    while (tile < last) {
        if (two && last - tile >= 2) {
            product_tiles<2, T>(p, begin, end, tile);
            tile += 2;
        } else {
            product_tiles<1, T>(p, begin, end, tile);
            tile += 1;
        }
    }
}

constexpr int64_t CHUNK_FLOATS = 64 << 10;  // of x that stay in the nearer cache while tiles pass by

// Tasks are (chunk of rows, group of tiles), taken as threads come free.
template <class T>
static void product_all(const Product *p) {
    const Matrix *m = p->matrix;
    int64_t tiles = (m->outputs + TILE - 1) / TILE;
    int64_t height = CHUNK_FLOATS / (m->inputs > 0 ? m->inputs : 1);
    height = height < 48 ? 48 : height;
    int64_t chunks = (p->rows + height - 1) / height;
    if (chunks < 1) return;
    int64_t wanted = (8 * p->threads + chunks - 1) / chunks;      // groups a chunk
    int64_t group = (tiles + wanted - 1) / wanted;
    int64_t at_once = tiles_at_once(p->rows / chunks);
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

// Rows of a matrix to tiles, in place; storage reaches to a whole number of tiles. scratch: a tile.
template <class T>
static void pack_tiles(T *data, int64_t outputs, int64_t inputs, T *scratch) {
    bool half = sizeof(T) == 2;
    for (int64_t first = 0; first < outputs; first += TILE, data += TILE * inputs) {
        int rows = outputs - first < TILE ? (int)(outputs - first) : TILE;
        memcpy(scratch, data, rows * inputs * sizeof(T));
        if (rows < TILE) memset(data, 0, TILE * inputs * sizeof(T));
        for (int row = 0; row < rows; row++)
            for (int64_t k = 0; k < inputs; k++)
                data[k * TILE + place_in_tile(row, half)] = scratch[row * inputs + k];
    }
}

static void pack(void *data, int64_t outputs, int64_t inputs, int bf16, void *scratch) {
    if (bf16) pack_tiles((uint16_t *)data, outputs, inputs, (uint16_t *)scratch);
    else pack_tiles((float *)data, outputs, inputs, (float *)scratch);
}

static void unpack_row(const Matrix *m, int bf16, int64_t row, float *out) {
    int64_t start = row / TILE * TILE * m->inputs;
    int column = place_in_tile((int)(row % TILE), bf16);
    for (int64_t k = 0; k < m->inputs; k++) {
        int64_t at = start + k * TILE + column;
        out[k] = bf16 ? number((const uint16_t *)m->data + at) : ((const float *)m->data)[at];
    }
}
