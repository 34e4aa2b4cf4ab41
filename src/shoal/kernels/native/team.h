// Threads that work on one step together. Between steps they sleep; within one they meet at barriers.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

class Team {
  public:
    explicit Team(int size);
    ~Team();
    Team(const Team &) = delete;
    int size() const { return size_; }
    // Every thread calls work(argument, its number); returns when all have.
    void run(void (*work)(void *, int), void *argument);
    // Called by every thread of a run: nobody goes on before all have come.
    void meet();

  private:
    void live(int number, unsigned seen);
    void start();
    int size_, process_ = 0;
    std::vector<std::thread> threads_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> phase_{0}, round_{0};
    std::atomic<bool> over_{false};
    void (*work_)(void *, int) = nullptr;
    void *argument_ = nullptr;
};
