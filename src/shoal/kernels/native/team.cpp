#include "team.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

// About as long as the shortest stage takes; who waits longer sleeps, so that the core is free for others.
static const int SPINS = 4000;

template <class T>
static void await_change(std::atomic<T> &value, T old) {
    for (int i = 0; i < SPINS; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        RELAX();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

Team::Team(int size) : size_(size < 1 ? 1 : size) {}

Team::~Team() {
    if (process_ != getpid()) {  // a fork has no threads to join
        for (auto &thread : threads_) thread.detach();
        return;
    }
    over_ = true;
    round_.fetch_add(1);
    round_.notify_all();
    for (auto &thread : threads_) thread.join();
}

void Team::start() {
    if (process_ == getpid()) return;
    for (auto &thread : threads_) thread.detach();
    threads_.clear();
    process_ = getpid();
    arrived_ = 0;
    unsigned seen = round_;
    for (int number = 1; number < size_; number++)
        threads_.emplace_back([this, number, seen] { live(number, seen); });
}

void Team::live(int number, unsigned seen) {
    for (;;) {
        await_change(round_, seen);
        seen = round_.load(std::memory_order_acquire);
        if (over_) return;
        work_(argument_, number);
        meet();
    }
}

void Team::run(void (*work)(void *, int), void *argument) {
    if (size_ == 1) return work(argument, 0);
    start();
    work_ = work;
    argument_ = argument;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    work(argument, 0);
    meet();
}

void Team::meet() {
    if (size_ == 1) return;
    unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    await_change(phase_, phase);
}
