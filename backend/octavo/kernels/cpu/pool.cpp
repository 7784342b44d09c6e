#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <thread>
#include <vector>

namespace octavo {

namespace {

// A thread that waits looks this often before it lets the core go: about 20 µs. Between two
// phases the others are done sooner; between two steps other threads of the process, which send
// tokens, have use for the core.
constexpr int SPINS = 2000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

struct Pool::Threads {
    std::vector<std::thread> all;
};

Pool::Pool(int num_threads, const int *cpus) : count_(num_threads), threads_(new Threads) {
    for (int id = 1; id < count_; id++) {
        threads_->all.emplace_back([this, id] { loop(id); });
        pthread_setname_np(threads_->all.back().native_handle(), "octavo-kernel");
        if (cpus) {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(cpus[id], &set);
            pthread_setaffinity_np(threads_->all.back().native_handle(), sizeof set, &set);
        }
    }
}

Pool::~Pool() {
    ends_.store(true, std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
    for (auto &thread : threads_->all) thread.join();
    delete threads_;
}

void Pool::run(void (*fn)(void *, Worker &), void *arg) {
    Worker worker;
    worker.id = 0;
    worker.count = count_;
    worker.pool = this;
    if (count_ == 1) {
        fn(arg, worker);
        return;
    }
    fn_ = fn;
    arg_ = arg;
    worker.phase = generation_.load(std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
    fn(arg, worker);
    worker.barrier();
}

void Pool::loop(int id) {
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && job_.load(std::memory_order_acquire) == seen; i++) relax();
        while (job_.load(std::memory_order_acquire) == seen) job_.wait(seen);
        seen++;
        if (ends_.load(std::memory_order_relaxed)) return;
        Worker worker;
        worker.id = id;
        worker.count = count_;
        worker.pool = this;
        // No barrier of this job is passed without this thread.
        worker.phase = generation_.load(std::memory_order_acquire);
        fn_(arg_, worker);
        worker.barrier();
    }
}

int64_t now_ns() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void Worker::barrier() {
    if (count == 1) return;
    if (!waited) return pass();
    const int64_t began = now_ns();
    pass();
    *waited += now_ns() - began;
}

void Worker::pass() {
    Pool &p = *pool;
    uint32_t own = phase++;
    if (p.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        p.arrived_.store(0, std::memory_order_relaxed);
        p.generation_.store(own + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; p.generation_.load(std::memory_order_acquire) == own; spins++) {
        if (spins < SPINS)
            relax();
        else
            sched_yield();  // the thread that is awaited may need this core
    }
}

// A share of an earlier phase is used up, and whoever comes first puts in its place what it is in
// this one: so a thread that is late does not keep its share from the others.
int Worker::take(int owner, int n) {
    const uint64_t tag = phase & 0x3fffff, mask = MAX_TASKS;
    auto &left = pool->shares_[owner].left;
    uint64_t now = left.load(std::memory_order_acquire);
    for (;;) {
        uint64_t begin = now >> 21 & mask, end = now & mask;
        if (now >> 42 != tag) {
            begin = uint64_t(n) * owner / count;
            end = uint64_t(n) * (owner + 1) / count;
        }
        if (begin >= end) return -1;
        int taken = owner == id ? int(begin++) : int(--end);
        if (left.compare_exchange_weak(now, tag << 42 | begin << 21 | end,
                                       std::memory_order_acq_rel))
            return taken;
    }
}

}  // namespace octavo
