// What Python calls: a session with its threads and scratch, the walk through the stages of a model, and single
// kernels for tests. Every call returns 0, or -1 where memory is not to be had.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "abi.h"
#include "team.h"

namespace {

// What a layer's time is divided into; native.py names them.
enum Stage { EMBED, NORM, QKV, PLACE, ATTENTION, OUTPUT, GATE_UP, DOWN };

double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Session {
    Session(int threads, const Kernels *kernels, bool share) : team(threads), kernels(kernels), share(share) {}
    Team team;
    const Kernels *kernels;
    bool share;        // whether attention reads what several runs have on the same pages once for all of them
    int64_t read = 0;  // positions
    std::mutex one_call;
    double *watched = nullptr;  // seconds by Stage, while somebody looks
    std::vector<float> x, normed, wide, mixed, scratch;  // bf16 rows take half of theirs
    std::vector<int32_t> order, run_of_row, common, row_order, sorted_run, group_first, group_low, group_high;
    std::vector<int64_t> turns;
    std::vector<int> counters;
};

const Kernels *supported(const char *name) {
    const Kernels *found = &kernels_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = &kernels_avx2;
    if (!strcmp(name, kernels_portable.name)) return &kernels_portable;
    if (!strcmp(name, kernels_avx2.name)) return found;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) found = &kernels_avx512;
    if (!strcmp(name, kernels_avx512.name)) return found;
    if (found == &kernels_avx512 && __builtin_cpu_supports("avx512bf16")) found = &kernels_avx512_bf16;
#endif
    return found;
}

constexpr int64_t MOST_GROUP = 32;  // rows, where they share nothing or belong to one long run
constexpr int64_t LEAST_CUT = 4;    // rows of a run that read it together, however few there are
constexpr int64_t SHORT_RUN = 8;

template <class T>
T *room(std::vector<T> &buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size + size / 4);
    return buffer.data();
}

int64_t pages_of(const Work &w, int32_t run) {
    int32_t last = w.step.first_row[run] + w.step.run_rows[run] - 1;
    return w.step.position[last] / w.cache.page_size + 1;
}

// Runs whose pages begin alike become neighbours; `common` is how many whole blocks they read together.
void arrange(Work &w, int64_t split, bool share) {
    const Step &s = w.step;
    for (int32_t run = 0; run < s.runs; run++) {
        w.order[run] = run;
        std::fill_n(w.run_of_row + s.first_row[run], s.run_rows[run], run);
    }
    auto pages = [&](int32_t run) { return s.pages + s.first_page[run]; };
    std::sort(w.order, w.order + s.runs, [&](int32_t a, int32_t b) {
        const int32_t *first = pages(a), *second = pages(b);
        int64_t some = pages_of(w, a), others = pages_of(w, b);
        auto [at, other] = std::mismatch(first, first + std::min(some, others), second);
        if (at != first + std::min(some, others)) return *at < *other;
        return some != others ? some < others : a < b;
    });
    int32_t row = 0;
    for (int32_t i = 0; i < s.runs; i++) {
        int32_t run = w.order[i];
        w.common[i] = 0;
        if (i && share) {
            int64_t least = std::min(pages_of(w, run), pages_of(w, w.order[i - 1]));
            const int32_t *mine = pages(run);
            int64_t same = std::mismatch(mine, mine + least, pages(w.order[i - 1])).first - mine;
            w.common[i] = (int32_t)(same * w.cache.page_size / split);
        }
        for (int32_t k = 0; k < s.run_rows[run]; k++, row++) {
            w.row_order[row] = s.first_row[run] + k;
            w.sorted_run[row] = i;
        }
    }
}

// Sorted rows are cut into groups that attention takes together: enough of them for all threads, but rows of short
// runs that share a block stay together.
void group(Work &w) {
    const Step &s = w.step;
    int64_t heads = w.model->layer_count ? w.model->layers[0].kv_heads : 1, wanted = 12 * w.threads;
    int64_t height = std::clamp((s.rows * heads + wanted - 1) / wanted, (int64_t)1, MOST_GROUP);
    auto tied = [&](int32_t i) {
        return i > 0 && i < s.runs && w.common[i] > 0 && s.run_rows[w.order[i]] <= SHORT_RUN &&
               s.run_rows[w.order[i - 1]] <= SHORT_RUN;
    };
    w.groups = 0;
    for (int32_t row = 0, first = 0; row < s.rows; row++) {
        int32_t i = w.sorted_run[row], taken = row - first;
        int32_t rows = s.run_rows[w.order[i]], position = s.position[w.row_order[row]];
        bool begins = !row || i != w.sorted_run[row - 1], cut = !row;
        if (row && begins && !tied(i)) cut = taken >= height || tied(i - 1) || tied(i + 1);
        if (row && !begins && rows > SHORT_RUN) cut = taken >= std::max(height, LEAST_CUT);
        if (cut) {
            first = row;
            w.group_first[w.groups] = row;
            w.group_low[w.groups] = w.group_high[w.groups] = position;
            w.groups++;
        }
        w.group_low[w.groups - 1] = std::min(w.group_low[w.groups - 1], position);
        w.group_high[w.groups - 1] = std::max(w.group_high[w.groups - 1], position);
    }
    w.group_first[w.groups] = (int32_t)s.rows;
}

// Whether halves of gate and up are of whole tiles, so that they can leave the product together.
bool gated_whole(const Layer &l) { return l.gate_up.outputs % 32 == 0; }

int64_t widest(const Model &m) {
    int64_t most = m.hidden;
    for (int64_t i = 0; i < m.layer_count; i++)
        most = std::max({most, m.layers[i].qkv.outputs, gated_whole(m.layers[i]) ? 0 : m.layers[i].gate_up.outputs});
    return most;
}

int64_t widest_inner(const Model &m) {
    int64_t most = m.hidden;
    for (int64_t i = 0; i < m.layer_count; i++)
        most = std::max({most, m.layers[i].output.inputs, m.layers[i].intermediate});
    return most;
}

Work prepare(Session &session, const Model *model, const Cache *cache, const Step *step) {
    Work w{};
    w.model = model;
    w.cache = *cache;
    w.step = *step;
    w.threads = session.team.size();
    w.narrow = session.kernels->pairs && model->bf16;
    size_t rows = step->rows, runs = step->runs;
    w.x = room(session.x, rows * model->hidden);
    w.normed = room(session.normed, rows * model->hidden);
    w.wide = room(session.wide, rows * widest(*model));
    w.mixed = room(session.mixed, rows * widest_inner(*model));
    w.order = room(session.order, runs);
    w.common = room(session.common, runs);
    w.run_of_row = room(session.run_of_row, rows);
    w.row_order = room(session.row_order, rows);
    w.sorted_run = room(session.sorted_run, rows);
    w.counters = room(session.counters, 5 * model->layer_count + 1);
    std::fill_n(w.counters, 5 * model->layer_count + 1, 0);
    w.group_first = room(session.group_first, rows + 1);
    w.group_low = room(session.group_low, rows);
    w.group_high = room(session.group_high, rows);
    w.turns = room(session.turns, (w.threads - 1) * rows);
    std::fill_n(w.turns, (w.threads - 1) * rows, 0);
    w.read = &session.read;
    arrange(w, 128, session.share);
    group(w);
    w.scratch = room(session.scratch, session.kernels->attend_scratch(&w));
    return w;
}

// One thread's part of a step. Rows are dealt out evenly; products and attention are taken task by task.
struct Walk {
    Session *session;
    Work *w;
    int thread;
    mutable double since = 0;

    // What passed since the last mark is this stage's: thread 0 speaks for all, its waits included.
    void mark(Stage stage) const {
        if (thread || !session->watched) return;
        double now = seconds_now();
        session->watched[stage] += now - since;
        since = now;
    }

    template <class F>
    void rows(F one) const {
        int64_t n = w->step.rows, threads = w->threads;
        for (int64_t row = n * thread / threads; row < n * (thread + 1) / threads; row++) one(row);
    }

    void product(const void *x, const Matrix &matrix, float *y, Epilogue epilogue, int *counter) const {
        Product p{x, matrix.inputs, w->step.rows, &matrix, y, matrix.outputs, epilogue, 0, counter, w->threads};
        session->kernels->product(&p, (int)w->model->bf16);
        session->team.meet();
    }

    // Row of what products take, `size` numbers each.
    void *row_of(void *rows, int64_t row, int64_t size) const {
        return (char *)rows + row * size * (w->narrow ? 2 : 4);
    }

    void norm(const float *weight, float epsilon) const {
        int64_t hidden = w->model->hidden;
        rows([&](int64_t row) {
            void *out = row_of(w->normed, row, hidden);
            session->kernels->norm(w->x + row * hidden, weight, out, hidden, epsilon, w->narrow);
        });
        session->team.meet();
    }

    // x += inner . matrix, normed first where a norm is given.
    void add(const void *inner, const Matrix &matrix, const float *after, float epsilon, int *counter) const {
        if (!after) return product(inner, matrix, w->x, ADD, counter);
        int64_t hidden = w->model->hidden;
        product(inner, matrix, w->wide, PUT, counter);
        rows([&](int64_t row) {
            float *added = w->wide + row * hidden, *x = w->x + row * hidden;
            session->kernels->norm(added, after, added, hidden, epsilon, 0);
            for (int64_t i = 0; i < hidden; i++) x[i] += added[i];
        });
        session->team.meet();
    }

    // mixed = activation(gate) * up.
    void gated(const Layer &l, int *counter) const {
        if (gated_whole(l)) {
            Product p{w->normed, l.gate_up.inputs, w->step.rows, &l.gate_up, w->mixed, l.intermediate,
                      GATE,      l.activation,     counter,      w->threads};
            session->kernels->product(&p, (int)w->model->bf16);
        } else {
            product(w->normed, l.gate_up, w->wide, PUT, counter);
            rows([&](int64_t row) {
                session->kernels->activate(w->wide + row * 2 * l.intermediate, row_of(w->mixed, row, l.intermediate),
                                           l.intermediate, l.activation, w->narrow);
            });
        }
        session->team.meet();
        mark(GATE_UP);
    }

    void embed() const {
        const Model &m = *w->model;
        rows([&](int64_t row) {
            float *x = w->x + row * m.hidden;
            session->kernels->unpack_row(&m.embed, (int)m.bf16, w->step.token[row], x);
            if (m.embed_scale != 1.0f)
                for (int64_t i = 0; i < m.hidden; i++) x[i] *= m.embed_scale;
        });
        session->team.meet();
    }

    void attention(const Layer &l, int *counters) const {
        rows([&](int64_t row) { session->kernels->place(w, &l, row); });
        session->team.meet();
        mark(PLACE);
        session->kernels->attend(w, &l, counters, thread);
        session->team.meet();
        mark(ATTENTION);
    }

    void layer(const Layer &l, int *counters) const {
        norm(l.attention_before, l.epsilon);
        mark(NORM);
        product(w->normed, l.qkv, w->wide, PUT, counters);
        mark(QKV);
        attention(l, counters + 1);
        add(w->mixed, l.output, l.attention_after, l.epsilon, counters + 2);
        mark(OUTPUT);
        norm(l.mlp_before, l.epsilon);
        mark(NORM);
        gated(l, counters + 3);
        add(w->mixed, l.down, l.mlp_after, l.epsilon, counters + 4);
        mark(DOWN);
    }

    void all() const {
        if (session->watched) since = seconds_now();
        embed();
        mark(EMBED);
        for (int64_t i = 0; i < w->model->layer_count; i++) layer(w->model->layers[i], w->counters + 5 * i);
    }
};

template <class F>
void on_team(Session &session, F part) {
    session.team.run([](void *f, int thread) { (*(F *)f)(thread); }, &part);
}

template <class F>
int guarded(void *handle, F call) {
    Session &session = *(Session *)handle;
    std::lock_guard<std::mutex> lock(session.one_call);
    try {
        call(session);
        return 0;
    } catch (const std::bad_alloc &) {
        return -1;
    }
}

Work head_work(Session &session, const Model *model, const float *hidden, int64_t rows) {
    Work w{};
    w.model = model;
    w.step.rows = rows;
    w.threads = session.team.size();
    w.narrow = session.kernels->pairs && model->bf16;
    w.x = (float *)hidden;
    w.normed = room(session.normed, rows * model->hidden);
    return w;
}

// Whether what one thread has seen comes before what another has: what is not a number, the larger, the lower.
bool before(const Best &one, const Best &other) {
    if (one.output < 0 || other.output < 0) return other.output < 0 && one.output >= 0;
    if (one.value != one.value || other.value != other.value) return other.value == other.value;
    return one.value > other.value || (one.value == other.value && one.output < other.output);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// A session of so many threads, on the widest instruction set there is, or on the one named; null: no memory.
// share 0: attention reads everything for each run by itself.
void *shoal_open(int threads, const char *name, int share) {
    try {
        return new Session(threads, supported(name), share);
    } catch (const std::exception &) {
        return nullptr;
    }
}

void shoal_close(void *handle) { delete (Session *)handle; }

// Positions that attention has read so far, over layers and heads of K and V.
int64_t shoal_positions_read(void *handle) { return ((Session *)handle)->read; }

const char *shoal_name(void *handle) { return ((Session *)handle)->kernels->name; }

// Whether products with bf16 matrices take bf16 rows.
int shoal_pairs(void *handle) { return ((Session *)handle)->kernels->pairs; }

int shoal_pack(void *handle, void *data, int64_t outputs, int64_t inputs, int bf16) {
    return guarded(handle, [&](Session &session) {
        int64_t tiles = (outputs + 15) / 16, threads = session.team.size(), size = bf16 ? 2 : 4;
        float *scratch = room(session.scratch, threads * 16 * inputs);
        on_team(session, [&](int thread) {
            int64_t first = 16 * (tiles * thread / threads), last = 16 * (tiles * (thread + 1) / threads);
            last = std::min(last, outputs);
            if (first < last)
                session.kernels->pack((char *)data + first * inputs * size, last - first, inputs, bf16,
                                      scratch + thread * 16 * inputs);
        });
    });
}

// GGUF blocks to float32 or bf16, threads side by side.
int shoal_decode(void *handle, int type, const uint8_t *blocks, int64_t count, void *out, int bf16) {
    return guarded(handle, [&](Session &session) {
        BlockShape shape = BLOCK_SHAPES[type];
        int64_t threads = session.team.size(), size = shape.elements * (bf16 ? 2 : 4);
        on_team(session, [&](int thread) {
            int64_t first = count * thread / threads, last = count * (thread + 1) / threads;
            session.kernels->decode(type, blocks + first * shape.bytes, last - first, (char *)out + first * size, bf16);
        });
    });
}

// From now on seconds of the stages of every step are added to these, in the order of Stage; null: no longer.
void shoal_watch(void *handle, double *seconds) { ((Session *)handle)->watched = seconds; }

int shoal_unpack(void *handle, const Matrix *matrix, int bf16, const int64_t *rows, int64_t count, float *out) {
    return guarded(handle, [&](Session &session) {
        for (int64_t i = 0; i < count; i++)
            session.kernels->unpack_row(matrix, bf16, rows[i], out + i * matrix->inputs);
    });
}

// One product alone. activation -1: y is (rows, outputs), float32; else the activation of the first half of the
// outputs times the second, (rows, outputs / 2), bf16 where shoal_pairs and the matrix is; halves of whole tiles.
int shoal_product(void *handle, const float *x, int64_t rows, const Matrix *matrix, void *y, int bf16,
                  int activation) {
    return guarded(handle, [&](Session &session) {
        const void *taken = x;
        if (bf16 && session.kernels->pairs) {
            taken = room(session.normed, rows * matrix->inputs);
            session.kernels->narrow(x, (uint16_t *)taken, rows * matrix->inputs);
        }
        bool gated = activation >= 0;
        int counter = 0;
        Product p{taken, matrix->inputs, rows, matrix, y, gated ? matrix->outputs / 2 : matrix->outputs,
                  gated ? GATE : PUT, activation, &counter, session.team.size()};
        on_team(session, [&](int) { session.kernels->product(&p, bf16); });
    });
}

// hidden: (rows, hidden), float32.
int shoal_forward(void *handle, const Model *model, const Cache *cache, const Step *step, float *hidden) {
    return guarded(handle, [&](Session &session) {
        Work w = prepare(session, model, cache, step);
        w.x = hidden;
        on_team(session, [&](int thread) { Walk{&session, &w, thread}.all(); });
    });
}

// Logits (rows, vocabulary), float32, of hidden vectors.
int shoal_head(void *handle, const Model *model, const float *hidden, int64_t rows, float *logits) {
    return guarded(handle, [&](Session &session) {
        int counter = 0;
        Work w = head_work(session, model, hidden, rows);
        on_team(session, [&](int thread) {
            Walk walk{&session, &w, thread};
            walk.norm(model->head_norm, model->head_epsilon);
            walk.product(w.normed, model->head, logits, PUT, &counter);
        });
    });
}

// The largest logit of each row and its token, the lowest of equal ones.
int shoal_best(void *handle, const Model *model, const float *hidden, int64_t rows, Best *found) {
    return guarded(handle, [&](Session &session) {
        int counter = 0;
        Work w = head_work(session, model, hidden, rows);
        std::vector<Best> best(rows * w.threads, Best{0, -1});
        on_team(session, [&](int thread) {
            Walk walk{&session, &w, thread};
            walk.norm(model->head_norm, model->head_epsilon);
            Best *mine = best.data() + rows * thread;
            Product p{w.normed, model->hidden, rows, &model->head, mine, 0, BEST, 0, &counter, w.threads};
            session.kernels->product(&p, (int)model->bf16);
        });
        std::fill_n(found, rows, Best{0, -1});
        for (int64_t i = 0; i < rows * w.threads; i++)
            if (before(best[i], found[i % rows])) found[i % rows] = best[i];
    });
}

// The attention of a model's first layer alone: wide holds q, k and v of every row; mixed takes the result.
int shoal_attention(void *handle, const Model *model, const Cache *cache, const Step *step, float *wide,
                    float *mixed) {
    return guarded(handle, [&](Session &session) {
        Work w = prepare(session, model, cache, step);
        w.wide = wide;
        w.mixed = mixed;
        w.narrow = 0;
        on_team(session, [&](int thread) { Walk{&session, &w, thread}.attention(model->layers[0], w.counters); });
    });
}

void shoal_norm(void *handle, const float *x, const float *weight, float *out, int64_t size, float epsilon) {
    ((Session *)handle)->kernels->norm(x, weight, out, size, epsilon, 0);
}

void shoal_activate(void *handle, const float *gate_up, float *out, int64_t size, int64_t activation) {
    ((Session *)handle)->kernels->activate(gate_up, out, size, activation, 0);
}
}
#pragma GCC visibility pop
