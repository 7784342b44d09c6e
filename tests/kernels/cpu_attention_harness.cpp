// The C interface of attention and of KV writes for one instruction set alone, as api.cpp has it.
#define OCTAVO_ISA tested
#include "../../backend/octavo/kernels/cpu/vec.h"

#include "../../backend/octavo/kernels/cpu/attention.inl"
#include "../../backend/octavo/kernels/cpu/store_kv.inl"

using namespace octavo;

extern "C" {

Pool *octavo_team_new(int threads, const int *cpus) { return new Pool(threads, cpus); }
void octavo_team_delete(Pool *team) { delete team; }

size_t octavo_attention_bytes(int, Pool *team, const Attention *a, const KVLayer *kv,
                              const Batch *b) {
    return tested::attention_scratch_bytes(*a, *kv, *b, team->num_threads());
}

void octavo_attention(int, Pool *team, const Attention *a, const KVLayer *kv, const Batch *b,
                      const float *query, float *out, uint8_t *memory) {
    const int64_t width = int64_t(a->num_heads) * kv->head_dim;
    team->run([&](Worker &w) {
        tested::paged_attention(w, *a, *kv, *b, query, width, out, width, memory);
    });
}

void octavo_store_kv(int, Pool *team, const KVLayer *kv, const int64_t *slots, int count,
                     const float *keys, const float *values) {
    const int64_t width = int64_t(kv->num_kv_heads) * kv->head_dim;
    team->run([&](Worker &w) {
        w.tasks(count, [&](int row) {
            if (slots[row] >= 0)
                tested::store_token(*kv, slots[row], keys + row * width, values + row * width);
        });
    });
}
}
