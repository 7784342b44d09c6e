// One team of threads that stays, and goes through a step's phases together.
//
// A job is one function that all threads run (`Pool::run`). Within it, `Worker::tasks` shares out
// the tasks of a phase and ends with a barrier: what one phase has written the next one may read.
#pragma once

#include <atomic>
#include <cstdint>

namespace octavo {

constexpr int MAX_THREADS = 256;
constexpr int MAX_TASKS = (1 << 21) - 1;  // of one phase

class Pool;

// Of the clock that Python's time.perf_counter_ns reads.
int64_t now_ns();

class Worker {
   public:
    int id;
    int count;

    // Where a thread adds the ns that it waits at barriers; null where nobody asks.
    int64_t *waited = nullptr;

    // Waits until all threads are here.
    void barrier();

    // Calls f(i) for each i of [0, n), once, on any thread; then a barrier. Each thread begins with
    // an equal share, in rising order, so that it reads a stream; who is done takes from the end
    // of another's share, since a thread may lose its core for a while.
    template <class F>
    void tasks(int n, F &&f) {
        if (count == 1) {
            for (int i = 0; i < n; i++) f(i);
            return;
        }
        for (int step = 0, i; step < count; step++)
            while ((i = take((id + step) % count, n)) >= 0) f(i);
        barrier();
    }

   private:
    friend class Pool;
    int take(int owner, int n);
    void pass();
    Pool *pool;
    uint32_t phase = 0;  // barriers passed
};

class Pool {
   public:
    // `cpus`: the core of each thread, or null where the system chooses.
    Pool(int num_threads, const int *cpus);
    ~Pool();
    Pool(const Pool &) = delete;

    int num_threads() const { return count_; }

    // fn(arg, worker) on all threads, the caller's among them; returns when all have.
    void run(void (*fn)(void *, Worker &), void *arg);

    template <class F>
    void run(F &&f) {
        run([](void *arg, Worker &w) { (*static_cast<F *>(arg))(w); }, &f);
    }

   private:
    friend class Worker;
    struct alignas(64) Share {
        std::atomic<uint64_t> left{~0ull};  // phase << 42 | begin << 21 | end
    };
    struct Threads;

    void loop(int id);

    int count_;
    Threads *threads_;
    alignas(64) std::atomic<uint32_t> job_{0};  // counts the jobs
    std::atomic<bool> ends_{false};
    void (*fn_)(void *, Worker &) = nullptr;
    void *arg_ = nullptr;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    Share shares_[MAX_THREADS];
};

}  // namespace octavo
