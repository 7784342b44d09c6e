// The C interface, which library.py calls. Pointers are never null unless said; sizes are checked
// there. Calls of one team of threads take turns.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <mutex>

#include "kernels.h"

using namespace octavo;

namespace {

const Kernels *kernels_of(int isa) {
    static const Kernels *all[] = {
#if defined(__x86_64__)
        amx_kernels(), avx512_kernels(), avx2_kernels(),
#else
        nullptr, nullptr, nullptr,
#endif
        portable_kernels()};
    return isa >= 0 && isa < 4 ? all[isa] : nullptr;
}

}  // namespace

struct octavo_team {
    octavo_team(int num_threads, const int *cpus) : pool(num_threads, cpus) {}
    Pool pool;
    std::mutex turn;
};

// So that only what is marked is seen from outside.
#define EXPORT __attribute__((visibility("default")))
#define TURN std::lock_guard<std::mutex> lock(team->turn)

extern "C" {

// The name of instruction set `isa` (0: the fastest), or null where this processor lacks it.
EXPORT const char *octavo_isa_name(int isa) {
    const Kernels *k = kernels_of(isa);
    return k ? k->name : nullptr;
}

// The size of structure `index`, in the order of types.py; 0 behind the last.
EXPORT size_t octavo_size_of(int index) {
    const size_t sizes[] = {sizeof(KVLayer),   sizeof(Batch),    sizeof(Matrix),       sizeof(Packed),
                            sizeof(Attention), sizeof(Sampling), sizeof(DecoderLayer), sizeof(Decoder),
                            sizeof(Timeline)};
    return index < int(sizeof sizes / sizeof *sizes) ? sizes[index] : 0;
}

EXPORT octavo_team *octavo_team_new(int num_threads, const int *cpus) {
    return new octavo_team(num_threads, cpus);
}

EXPORT void octavo_team_delete(octavo_team *team) { delete team; }

// Asks the kernel for huge pages under [p, p + bytes), which is not touched yet.
EXPORT void octavo_advise_huge(void *p, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

EXPORT int octavo_num_panels(const Matrix *m) { return num_panels(*m); }
EXPORT size_t octavo_panel_bytes(const Matrix *m) { return panel_bytes(*m); }

EXPORT void octavo_pack(octavo_team *team, const Matrix *m, const void *weight, const void *scales,
                 const float *bias, const Packed *out) {
    TURN;
    team->pool.run([&](Worker &w) { pack(w, *m, weight, scales, bias, *out); });
}

EXPORT size_t octavo_linear_bytes(int isa, const Matrix *m, int count) {
    return kernels_of(isa)->linear_bytes(*m, count);
}

EXPORT void octavo_linear(int isa, octavo_team *team, const Matrix *m, const float *x, int count,
                   float *out, uint8_t *memory) {
    TURN;
    kernels_of(isa)->linear(team->pool, *m, x, count, out, memory);
}

EXPORT size_t octavo_attention_bytes(int isa, octavo_team *team, const Attention *a, const KVLayer *kv,
                              const Batch *b) {
    return kernels_of(isa)->attention_bytes(*a, *kv, *b, team->pool.num_threads());
}

EXPORT void octavo_attention(int isa, octavo_team *team, const Attention *a, const KVLayer *kv,
                      const Batch *b, const float *query, float *out, uint8_t *memory) {
    TURN;
    kernels_of(isa)->attention(team->pool, *a, *kv, *b, query, out, memory);
}

EXPORT void octavo_store_kv(int isa, octavo_team *team, const KVLayer *kv, const int64_t *slots, int count,
                     const float *keys, const float *values) {
    TURN;
    kernels_of(isa)->store_kv(team->pool, *kv, slots, count, keys, values);
}

EXPORT void octavo_add_rms_norm(int isa, octavo_team *team, const float *x, float *residual,
                         const float *weight, int rows, int width, float eps, float *out) {
    TURN;
    kernels_of(isa)->add_rms_norm(team->pool, x, residual, weight, rows, width, eps, out);
}

EXPORT void octavo_greedy(int isa, octavo_team *team, const float *logits, int rows, int64_t vocabulary,
                   int64_t *tokens, uint8_t *are_finite) {
    TURN;
    kernels_of(isa)->greedy(team->pool, logits, rows, vocabulary, tokens, are_finite);
}

EXPORT size_t octavo_sample_bytes(int isa, octavo_team *team, int64_t vocabulary) {
    return kernels_of(isa)->sample_bytes(vocabulary, team->pool.num_threads());
}

EXPORT void octavo_sample(int isa, octavo_team *team, const float *logits, int rows, int64_t vocabulary,
                   const Sampling *sampling, int64_t *tokens, uint8_t *memory) {
    TURN;
    kernels_of(isa)->sample(team->pool, logits, rows, vocabulary, *sampling, tokens, memory);
}

EXPORT size_t octavo_step_bytes(int isa, octavo_team *team, const Decoder *d, const Batch *b) {
    return kernels_of(isa)->step_bytes(*d, *b, team->pool.num_threads());
}

// timeline: null, or where the step tells its times.
EXPORT void octavo_forward(int isa, octavo_team *team, const Decoder *d, const Batch *b,
                    const int64_t *sample_indices, int num_samples, float *logits,
                    uint8_t *memory, Timeline *timeline) {
    TURN;
    kernels_of(isa)->forward(team->pool, *d, *b, sample_indices, num_samples, logits, memory,
                             timeline);
}

// Seconds of one pass of all threads through [data, data + bytes).
EXPORT double octavo_read_seconds(int isa, octavo_team *team, const uint8_t *data, int64_t bytes) {
    TURN;
    static std::atomic<int32_t> kept;
    const auto begin = std::chrono::steady_clock::now();
    kept ^= kernels_of(isa)->read_through(team->pool, data, bytes);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// FLOPs a second of all threads, at products of inputs of `kind` (gemm.inl, InputKind).
EXPORT double octavo_multiply_rate(int isa, octavo_team *team, int kind, int64_t rounds) {
    TURN;
    const auto begin = std::chrono::steady_clock::now();
    const double flops = kernels_of(isa)->multiply_through(team->pool, kind, rounds);
    return flops / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The name of a phase of octavo_forward (decoder.inl); null behind the last.
EXPORT const char *octavo_phase_name(int isa, int phase) {
    return kernels_of(isa)->phase_name(phase);
}

}  // extern "C"
