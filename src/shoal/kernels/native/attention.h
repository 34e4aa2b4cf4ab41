// Attention over pages. Positions are cut into absolute blocks of SPLIT; each gives (max, sum, output) and blocks
// are merged in ascending order, so the result of a row depends on its own positions alone: not on the rows beside
// it, on pages, chunks or who shares them. A masked position adds exactly zero.
//
// Rows whose block lies on the same pages are scored together, whichever sequence they belong to (Juravsky et al.
// 2024, "Hydragen", arXiv 2402.05099: one product for all queries of a shared prefix; here at every depth of
// sharing). The query heads of one head of K and V are more rows of that product. Rows that share a block are one
// task, however many they are: it is read once for all of them. Where heads do not deal out evenly to the threads,
// the last ones are taken block by block, and each row's blocks are still merged in ascending order.
#pragma once
#include <sched.h>

#include "abi.h"
#include "block.h"
#include "rows.h"
#include "vectors.h"

constexpr int64_t QUERIES = 32;  // scored at once: with a block they fit the nearer caches
constexpr int64_t LEAST_BLOCK = 4096;  // numbers of queries: some 50 microseconds of work
constexpr int64_t SPINS = 2000;  // before the core is left to others

// A thread's scratch. m = queries of a task, n = queries scored at once.
struct Desk {
    float *query;                        // (m, size)
    float *output, *highest, *total;     // (m, padded size), (m,), (m,): of blocks merged so far
    float *scores;                       // (n, SCORES)
    float *block;                        // (n, padded size), of this block
    float *block_highest, *block_total;  // (n,)
};

// One head of K and V for sorted rows from .. to.
struct Task {
    const Work *w;
    const Layer *l;
    int64_t share, head, from, to;  // share: queries of a row
    Desk desk;
    int64_t *turn;  // of each row, which block it merges next; null where one thread has all blocks
};

INLINE int64_t share_of(const Layer *l) { return l->heads / l->kv_heads; }

INLINE int64_t rows_at_once(int64_t share) { return share < QUERIES ? QUERIES / share : 1; }

// Where the parts of a desk for so many rows lie; returns its floats. Without a place it only counts them.
static int64_t lay(Desk *d, const Layer *l, int64_t rows, float *at) {
    int64_t m = rows * share_of(l), n = rows_at_once(share_of(l)) * share_of(l), width = padded(l->head_size), used = 0;
    auto take = [&](int64_t floats) {
        float *taken = at ? at + used : nullptr;
        used += (floats + 15) / 16 * 16;
        return taken;
    };
    d->query = take(m * l->head_size);
    d->output = take(m * width);
    d->highest = take(m);
    d->total = take(m);
    d->scores = take(n * SCORES);
    d->block = take(n * width);
    d->block_highest = take(n);
    d->block_total = take(n);
    return used;
}

INLINE int64_t group_rows(const Work *w, int64_t group) { return w->group_first[group + 1] - w->group_first[group]; }

// Heads that deal out evenly are one task a group.
INLINE int64_t whole_heads(const Work *w, const Layer *l) { return l->kv_heads / w->threads * w->threads; }

// In the other heads, a group above half of a thread's fair share is taken block by block, unless threads would
// wait for each other more than they work.
INLINE bool by_blocks(const Work *w, const Layer *l, int64_t group) {
    int64_t rows = group_rows(w, group);
    return 2 * w->threads * rows > l->kv_heads * w->step.rows && rows * share_of(l) * l->head_size >= LEAST_BLOCK;
}

// Floats for desks, of `desk_size` each, and for what is merged block by block.
static int64_t attend_scratch(Work *w) {
    int64_t rows = 0, together = 0;
    for (int64_t group = 0; group < w->groups; group++)
        rows = group_rows(w, group) > rows ? group_rows(w, group) : rows;
    w->desk_size = 0;
    for (int64_t i = 0; i < w->model->layer_count; i++) {
        const Layer *l = w->model->layers + i;
        Desk d;
        int64_t size = lay(&d, l, rows, nullptr);
        int64_t heads = l->kv_heads - whole_heads(w, l);
        int64_t shared = heads * w->step.rows * share_of(l) * (padded(l->head_size) + 2);
        w->desk_size = size > w->desk_size ? size : w->desk_size;
        together = shared > together ? shared : together;
    }
    return w->threads * w->desk_size + together + 16;
}

// The first position that a row sees.
INLINE int64_t sees_from(const Layer *l, int64_t position) {
    int64_t from = l->window ? position - l->window + 1 : 0;
    return from > 0 ? from : 0;
}

INLINE int64_t position_of(const Task &t, int64_t row) { return t.w->step.position[t.w->row_order[row]]; }

// A query's (highest, total, output) of a block into those of the blocks before it, if there are any.
static void merge(const Desk &d, int64_t to, int64_t from, int64_t width, bool first) {
    float *output = d.output + to * width;
    const float *block = d.block + from * width;
    float before = d.highest[to], now = d.block_highest[from];
    if (first) {
        memcpy(output, block, width * sizeof(float));
        d.highest[to] = now;
        d.total[to] = d.block_total[from];
        return;
    }
    // e^0 is 1.
    bool higher = now > before;
    Vec less = exponential(splat(higher ? before - now : now - before));
    Vec kept = higher ? less : splat(1.0f), taken = higher ? splat(1.0f) : less;
    for (int64_t c = 0; c < width; c += LANES)
        store(output + c, fma(load(block + c), taken, load(output + c) * kept));
    d.highest[to] = higher ? now : before;
    d.total[to] = d.block_total[from] * taken[0] + d.total[to] * kept[0];
}

// The queries of a row are done. Adding nothing turns -0 into 0.
template <class X>
static void deliver_as(const Task &t, int64_t row) {
    int64_t size = t.l->head_size;
    for (int64_t i = 0; i < t.share; i++) {
        int64_t at = (row - t.from) * t.share + i;
        X *out = (X *)t.w->mixed + (t.w->row_order[row] * t.l->heads + t.head * t.share + i) * size;
        const float *output = t.desk.output + at * padded(size);
        for (int64_t c = 0; c < size; c++) put(out + c, output[c] / t.desk.total[at] + 0.0f);
    }
}

static void deliver(const Task &t, int64_t row) {
    if (t.w->narrow) deliver_as<uint16_t>(t, row);
    else deliver_as<float>(t, row);
}

// Until another thread has merged the row's block before this one; that thread took it earlier and is at it.
static void await_turn(const int64_t *turn, int64_t wanted) {
    for (int64_t i = 0; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != wanted; i++) {
#if defined(__x86_64__)
        if (i < SPINS) _mm_pause();
#endif
        if (i >= SPINS) sched_yield();
    }
}

// A block of the rows from `first` on that have it on the same pages, at most rows_at_once.
template <class T>
static void attend_rows(const Task &t, const Block<T> &b, int64_t first, int64_t count) {
    const Desk &d = t.desk;
    int64_t share = t.share, n = count * share, block = b.start / SPLIT;
    score(d.query + (first - t.from) * share * b.size, n, b, d.scores);
    for (int64_t row = 0; row < count; row++) {
        int64_t position = position_of(t, first + row), begin = sees_from(t.l, position);
        int64_t sees = begin > b.start ? begin - b.start : 0;
        int64_t until = position + 1 < b.start + SPLIT ? position + 1 - b.start : SPLIT;
        for (int64_t i = row * share; i < (row + 1) * share; i++)
            weigh(d.scores + i * SCORES + TILE, b.low - b.start, b.high - b.start, sees, until,
                  d.block_highest + i, d.block_total + i);
    }
    mix(d.scores, n, b, d.block);
    // Turns of other layers are other numbers.
    int64_t layer = (t.l - t.w->model->layers + 1) << 32;
    for (int64_t row = first; row < first + count; row++) {
        int64_t position = position_of(t, row);
        bool begins = sees_from(t.l, position) / SPLIT == block;
        if (t.turn && !begins) await_turn(t.turn + row, layer + block);
        for (int64_t i = 0; i < share; i++)
            merge(d, (row - t.from) * share + i, (row - first) * share + i, padded(b.size), begins);
        if (position / SPLIT == block) deliver(t, row);
        else if (t.turn) __atomic_store_n(t.turn + row, layer + block + 1, __ATOMIC_RELEASE);
    }
}

INLINE bool visible(const Layer *l, int64_t position, int64_t block) {
    return position >= block * SPLIT && sees_from(l, position) < (block + 1) * SPLIT;
}

// The block of a sorted row that is read after this one: its keys are fetched meanwhile. row -1: none.
struct Later {
    int64_t row, block;
};

template <class T>
static void fetch_later(const Task &t, Later later) {
    if (later.row < 0) return;
    int64_t position = position_of(t, later.row), start = later.block * SPLIT;
    int64_t high = position + 1 < start + SPLIT ? position + 1 : start + SPLIT;
    fetch_keys(pages_of<T>(t.w, t.l, t.head, t.w->sorted_run[later.row]), start, high);
}

// One block for sorted rows from .. to; returns how many positions were read.
template <class T>
static int64_t attend_block(const Task &t, int64_t from, int64_t to, int64_t block, Later later) {
    const Work *w = t.w;
    int64_t read = 0, at_once = rows_at_once(t.share);
    for (int64_t i = from; i < to;) {
        if (!visible(t.l, position_of(t, i), block)) {
            i++;
            continue;
        }
        Block<T> b;
        b.start = block * SPLIT;
        b.low = b.start + SPLIT;
        b.high = b.start;
        int64_t end = i;
        do {
            int64_t position = position_of(t, end), begin = sees_from(t.l, position);
            b.low = begin < b.low ? begin : b.low;
            b.high = position + 1 > b.high ? position + 1 : b.high;
            end++;
        } while (end < to && visible(t.l, position_of(t, end), block) &&
                 (w->sorted_run[end] == w->sorted_run[end - 1] || w->common[w->sorted_run[end]] > block));
        b.low = b.low > b.start ? b.low : b.start;
        b.high = b.high < b.start + SPLIT ? b.high : b.start + SPLIT;
        find(b, pages_of<T>(w, t.l, t.head, w->sorted_run[i]));
        fetch_values(b);
        fetch_later<T>(t, later);
        read += b.high - b.low;
        for (; i < end; i += at_once) attend_rows(t, b, i, i + at_once < end ? at_once : end - i);
        i = end;
    }
    return read;
}

// Every block of a task in ascending order, rows that share none one after the other.
template <class T>
static int64_t attend_all(const Task &t) {
    const Work *w = t.w;
    int64_t read = 0;
    for (int64_t i = t.from, end; i < t.to; i = end) {
        int64_t lowest = INT64_MAX, highest = 0;
        for (end = i; end < t.to; end++) {
            int32_t run = w->sorted_run[end];
            if (end > i && run != w->sorted_run[end - 1] && !w->common[run]) break;
            int64_t position = position_of(t, end), begin = sees_from(t.l, position) / SPLIT;
            lowest = begin < lowest ? begin : lowest;
            highest = position / SPLIT > highest ? position / SPLIT : highest;
        }
        for (int64_t block = lowest; block <= highest; block++) {
            Later later = {i, block + 1};
            if (block == highest)
                later = end < t.to ? Later{end, sees_from(t.l, position_of(t, end)) / SPLIT} : Later{-1, 0};
            read += attend_block<T>(t, i, end, block, later);
        }
    }
    return read;
}

// Queries of a task to its desk.
static void fetch(const Task &t) {
    const Layer *l = t.l;
    int64_t row_size = (l->heads + 2 * l->kv_heads) * l->head_size, size = t.share * l->head_size;
    float *query = t.desk.query;
    for (int64_t row = t.from; row < t.to; row++, query += size) {
        const float *q = t.w->wide + t.w->row_order[row] * row_size + t.head * size;
        for (int64_t c = 0; c < size; c++) query[c] = q[c] * l->scale;
    }
}

// A task of the groups that are taken block by block, `number` of them counted; false where there are no more.
static bool block_of(Task &t, int64_t number, int64_t *block) {
    const Work *w = t.w;
    for (t.head = whole_heads(w, t.l); t.head < t.l->kv_heads; t.head++)
        for (int64_t group = 0; group < w->groups; group++) {
            if (!by_blocks(w, t.l, group)) continue;
            int64_t lowest = sees_from(t.l, w->group_low[group]) / SPLIT;
            int64_t blocks = w->group_high[group] / SPLIT - lowest + 1;
            if (number < blocks) {
                t.from = w->group_first[group];
                t.to = w->group_first[group + 1];
                *block = lowest + number;
                return true;
            }
            number -= blocks;
        }
    return false;
}

// Results so far of a group that all threads work on.
static void lay_together(Task &t, float *at) {
    const Work *w = t.w;
    int64_t width = padded(t.l->head_size), other = t.head - whole_heads(w, t.l);
    int64_t all = (t.l->kv_heads - whole_heads(w, t.l)) * w->step.rows * t.share;
    int64_t first = (other * w->step.rows + t.from) * t.share;
    t.desk.output = at + first * width;
    t.desk.highest = at + all * width + first;
    t.desk.total = at + all * (width + 1) + first;
    t.turn = w->turns + other * w->step.rows;
}

// Tasks are (head of K and V, group), then blocks of what would not deal out evenly.
template <class T>
static int64_t attend_tasks(const Work *w, const Layer *l, int *counter, int thread) {
    float *scratch = (float *)(((uintptr_t)w->scratch + 63) / 64 * 64);
    float *together = scratch + w->threads * w->desk_size;
    int64_t whole = whole_heads(w, l), tasks = l->kv_heads * w->groups, read = 0, longest = 0;
    for (int64_t group = 0; group < w->groups; group++)
        longest = group_rows(w, group) > longest ? group_rows(w, group) : longest;
    for (;;) {
        Task t{};
        t.w = w;
        t.l = l;
        t.share = share_of(l);
        lay(&t.desk, l, longest, scratch + thread * w->desk_size);
        int64_t number = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED), block;
        if (number < tasks) {
            int64_t group = number % w->groups;
            t.head = number / w->groups;
            if (t.head >= whole && by_blocks(w, l, group)) continue;
            t.from = w->group_first[group];
            t.to = w->group_first[group + 1];
            fetch(t);
            read += attend_all<T>(t);
        } else {
            if (!block_of(t, number - tasks, &block)) return read;
            lay_together(t, together);
            fetch(t);
            read += attend_block<T>(t, t.from, t.to, block, Later{-1, 0});
        }
    }
}

static void attend(const Work *w, const Layer *l, int *counter, int thread) {
    int64_t read = w->model->bf16 ? attend_tasks<uint16_t>(w, l, counter, thread)
                                  : attend_tasks<float>(w, l, counter, thread);
    __atomic_fetch_add(w->read, read, __ATOMIC_RELAXED);
}
