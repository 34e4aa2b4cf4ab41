// What Python hands over (shoal/kernels/native.py mirrors every struct), and what each instruction set offers.
#pragma once
#include <cstddef>
#include <cstdint>

struct Matrix {           // outputs x inputs, packed: tiles of 16 outputs, (inputs, 16) each
    void *data;
    const void *bias;     // (outputs,), the matrix's type, or null
    int64_t outputs, inputs;
};

struct Layer {
    const float *attention_before, *attention_after, *mlp_before, *mlp_after;  // norms; "after" may be null
    const float *query_norm, *key_norm;                                        // may be null
    Matrix qkv, output, gate_up, down;
    void *keys, *values;  // this layer's part of the cache
    int64_t heads, kv_heads, head_size, window, rotary;  // window 0: none; rotary: which table
    int64_t intermediate, activation;                    // activation 0: silu, 1: gelu_tanh
    float epsilon, scale;
};

struct Cache {
    int64_t pages, page_size;
    int64_t stride;  // from a page to the next, in numbers, where a page has all layers and heads; 0: a head's pages
};                   // lie side by side

struct Model {
    int64_t bf16, hidden, layer_count;  // bf16: weights and cache are; else float32
    const Layer *layers;
    Matrix embed, head;
    const float *head_norm;
    float head_epsilon, embed_scale;
};

struct Turns {            // cosine and sine, (positions, head_size / 2) each, already times their factor
    const float *cosine, *sine;
};

struct Step {
    int64_t rows, runs;
    const int32_t *token, *position;                       // (rows,)
    const int32_t *first_row, *run_rows, *first_page;      // (runs,)
    const int32_t *pages;
    const int32_t *place;                                  // (runs,), the page of the cache at which a run's
                                                           // pages begin, one after the other; null: by their ids
    Turns turns[8];                                        // by Layer::rotary
};

// Scratch of one step and what is worked out once for all layers.
struct Work {
    const Model *model;
    Cache cache;
    Step step;
    float *x, *wide;                    // (rows, hidden), (rows, widest)
    void *normed, *mixed;               // (rows, hidden), (rows, heads * size or intermediate): rows of products
    int narrow;                         // those are bf16
    int32_t *order, *run_of_row;        // runs sorted so that those that share pages are neighbours
    int32_t *common;                    // (runs,), whole blocks a run shares with the one before it in order
    int32_t *row_order;                 // (rows,), rows in the order of runs
    int32_t *sorted_run;                // (rows,), which run in order a sorted row belongs to
    int32_t groups;                     // sorted rows that attention takes together
    int32_t *group_first;               // (groups + 1,), sorted rows
    int32_t *group_low, *group_high;    // (groups,), their lowest and highest position
    int *counters;                      // one a stage: the next task
    float *scratch;                     // of attention: a desk a thread, and what threads work on together
    int64_t desk_size;                  // floats
    int64_t *turns;                     // (threads - 1, rows), which block a row merges next
    int64_t *read;                      // positions that attention has read, over heads of K and V
    int32_t threads;
};

// How a product leaves: put, added to what is there, the activation of its first half times its second, or only
// the largest output of each row.
enum Epilogue { PUT, ADD, GATE, BEST };

struct Best {
    float value;          // not a number where any output was none
    int32_t output;       // the lowest of equal ones; -1: none seen yet
};


struct Product {
    const void *x;        // (rows, inputs), float32; bf16 where Kernels::pairs and the matrix is
    int64_t x_stride, rows;
    const Matrix *matrix;
    void *y;              // (rows, outputs), float32; gated (rows, outputs / 2), of the type of x; (rows,) of Best
    int64_t y_stride;
    Epilogue epilogue;
    int64_t activation;   // of the gate; halves of whole tiles
    int *counter;
    int32_t threads;
};

// GGUF's types of blocks.
enum BlockType { Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, BLOCK_TYPES };

struct BlockShape {
    int64_t elements, bytes;
};

constexpr BlockShape BLOCK_SHAPES[BLOCK_TYPES] = {{32, 18}, {32, 22}, {32, 34}, {256, 144}, {256, 176}, {256, 210}};

struct Kernels {
    const char *name;
    int pairs;            // products with bf16 matrices take bf16 rows, two inputs at a time
    void (*pack)(void *data, int64_t outputs, int64_t inputs, int bf16, void *scratch);
    void (*narrow)(const float *x, uint16_t *out, int64_t size);           // to bf16
    void (*decode)(int type, const uint8_t *blocks, int64_t count, void *out, int bf16);  // blocks side by side
    void (*unpack_row)(const Matrix *matrix, int bf16, int64_t row, float *out);
    void (*product)(const Product *product, int bf16);
    void (*norm)(const float *x, const float *weight, void *out, int64_t size, float epsilon, int bf16);
    void (*place)(const Work *work, const Layer *layer, int64_t row);       // norms, turns, K and V to the cache
    void (*attend)(const Work *work, const Layer *layer, int *counter, int thread);
    void (*activate)(const float *gate_up, void *out, int64_t size, int64_t activation, int bf16);
    int64_t (*attend_scratch)(Work *work);                                 // its floats; says the size of a desk
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
