// Paged attention, as reference_kv.paged_attention states it: float32 sums over keys and values
// that are read where they lie.
#pragma once

#include "attention_decode.inl"
#include "attention_prefill.inl"
#include "pool.h"

namespace octavo::OCTAVO_ISA {

namespace paged {

// The tasks of a batch: of each sequence, chunks of the context of one token, or tiles of many.
// What is done for a sequence depends on its own numbers only.
struct Plan {
    const Attention &attention;
    const KVLayer &kv;
    const Batch &batch;
    int heads;  // R

    Plan(const Attention &a, const KVLayer &k, const Batch &b)
        : attention(a), kv(k), batch(b), heads(a.num_heads / k.num_kv_heads) {}

    int64_t tokens(int seq) const { return batch.query_start[seq + 1] - batch.query_start[seq]; }

    // The first position that the only token of a sequence attends to.
    int64_t reach(int seq) const {
        int64_t context = batch.context_lens[seq], window = attention.window;
        return window > 0 && context > window ? context - window : 0;
    }

    int64_t num_items(int seq) const {
        if (tokens(seq) == 1)
            return (batch.context_lens[seq] + CHUNK - 1) / CHUNK - reach(seq) / CHUNK;
        return (tokens(seq) + tile_tokens(heads) - 1) / tile_tokens(heads);
    }

    bool has_parts(int seq) const { return tokens(seq) == 1 && num_items(seq) > 1; }

    // One chunk's part of the result of one key-value head: sums [R, dim], peaks and totals [R].
    int64_t part_size() const { return round_up(int64_t(heads) * (kv.head_dim + 2), LANES); }
};

// `scratch` as it is laid out: the parts that are put together, and a piece of each thread.
struct Memory {
    float *parts;     // [items, G, part_size]
    int64_t *starts;  // [S + 1]: the first item of each sequence
    uint8_t *own;
    uintptr_t end;

    Memory(const Plan &plan, uintptr_t begin, int id, int count) {
        int64_t items = 0;
        for (int seq = 0; seq < plan.batch.num_seqs; seq++) items += plan.num_items(seq);
        Bump bump{begin};
        parts = bump.take<float>(items * plan.kv.num_kv_heads * plan.part_size());
        const int64_t bytes = thread_bytes(plan);
        own = bump.take<uint8_t>(bytes * count) + bytes * id;
        Bump rest{uintptr_t(own)};
        starts = rest.take<int64_t>(plan.batch.num_seqs + 1);
        work = rest.at;
        end = bump.at;
    }
    uintptr_t work;

   private:
    static int64_t thread_bytes(const Plan &plan) {
        Bump shared{0};
        shared.take<int64_t>(plan.batch.num_seqs + 1);
        Bump decode = shared, prefill = shared;
        DecodeScratch(decode, plan.heads, plan.kv.head_dim);
        PrefillScratch(prefill, plan.heads, plan.kv.head_dim);
        return round_up(decode.at > prefill.at ? decode.at : prefill.at, 64);
    }
};

template <class Out>
OCTAVO_INLINE void write_row(const float *sums, float total, int dim, Out *out) {
    const float factor = 1.0f / total;
    for (int d = 0; d < dim; d += LANES) store(out + d, load(sums + d) * factor, dim - d);
}

template <class T, bool PAIRS, class Out>
void run_chunk(const Plan &plan, int seq, int64_t item, int group, bool alone, const float *query,
               float *part, Out *out, uintptr_t work) {
    const int heads = plan.heads, dim = plan.kv.head_dim;
    Bump bump{work};
    DecodeScratch scratch(bump, heads, dim);
    const int64_t reach = plan.reach(seq), context = plan.batch.context_lens[seq];
    const int64_t chunk = (reach / CHUNK + item) * CHUNK;
    decode_chunk<T, PAIRS>(plan.kv, plan.batch.block_tables + seq * plan.batch.table_stride, group, heads,
                    chunk > reach ? chunk : reach,
                    chunk + CHUNK < context ? chunk + CHUNK : context, Scaling(plan.attention),
                    query, scratch);
    for (int h = 0; h < heads; h++) {
        const float *sums = scratch.sums + h * scratch.padded_dim;
        if (alone) {
            write_row(sums, scratch.totals[h], dim, out + h * dim);
        } else {
            memcpy(part + h * dim, sums, dim * sizeof(float));
            part[heads * dim + h] = scratch.peaks[h];
            part[heads * (dim + 1) + h] = scratch.totals[h];
        }
    }
}

template <class T, bool PAIRS, class Out>
void run_tile(const Plan &plan, int seq, int64_t item, int group, const float *query,
              int64_t query_stride, Out *out, int64_t out_stride, uintptr_t work) {
    const int heads = plan.heads, dim = plan.kv.head_dim;
    Bump bump{work};
    PrefillScratch scratch(bump, heads, dim);
    const int64_t tokens = plan.tokens(seq), first = item * tile_tokens(heads);
    const int64_t left = tokens - first;
    const int count = left < tile_tokens(heads) ? int(left) : tile_tokens(heads);
    prefill_tile<T, PAIRS>(plan.kv, plan.batch.block_tables + seq * plan.batch.table_stride, group, heads,
                    plan.batch.context_lens[seq] - tokens + first, count, plan.attention.window,
                    Scaling(plan.attention), query + first * query_stride, query_stride, scratch);
    for (int row = 0; row < count * heads; row++)
        write_row(scratch.sums + int64_t(row) * scratch.padded_dim, scratch.totals[row], dim,
                  out + (first + row / heads) * out_stride + row % heads * dim);
}

// parts [items, G, part_size] of one key-value head, in order → its rows of the result.
template <class Out>
void join_parts(const Plan &plan, int64_t items, float *parts, Out *out) {
    const int heads = plan.heads, dim = plan.kv.head_dim;
    const int64_t stride = plan.kv.num_kv_heads * plan.part_size();
    for (int h = 0; h < heads; h++) {
        float *peaks = parts + heads * dim + h, *totals = peaks + heads;
        float top = -FLT_MAX, total = 0;
        for (int64_t i = 0; i < items; i++)
            top = peaks[i * stride] > top ? peaks[i * stride] : top;
        for (int64_t i = 0; i < items; i++) {
            float &factor = peaks[i * stride];
            factor = exp2(splat(factor - top))[0];
            total += totals[i * stride] * factor;
        }
        for (int d = 0; d < dim; d += LANES) {
            vf sum = {};
            for (int64_t i = 0; i < items; i++)
                sum += load(parts + i * stride + h * dim + d, dim - d) * peaks[i * stride];
            store(out + h * dim + d, sum * (1.0f / total), dim - d);
        }
    }
}

template <class T, bool PAIRS, class Out>
void attend(Worker &worker, const Plan &plan, const float *query, int64_t query_stride, Out *out,
            int64_t out_stride, uint8_t *scratch) {
    const int groups = plan.kv.num_kv_heads, seqs = plan.batch.num_seqs;
    const int width = plan.heads * plan.kv.head_dim;  // numbers of one key-value head in a row
    Memory memory(plan, uintptr_t(scratch), worker.id, worker.count);
    bool has_parts = false;
    [[maybe_unused]] bool has_tiles = false;
    memory.starts[0] = 0;
    for (int seq = 0; seq < seqs; seq++) {
        memory.starts[seq + 1] = memory.starts[seq] + plan.num_items(seq);
        has_parts |= plan.has_parts(seq);
        has_tiles |= PAIRS && plan.tokens(seq) > 1;
    }
#ifdef OCTAVO_AMX
    if (has_tiles) configure_tiles({64});
#endif
    auto part = [&](int64_t item, int group) {
        return memory.parts + (item * groups + group) * plan.part_size();
    };
    const int64_t num_tasks = memory.starts[seqs] * groups;
    for (int64_t base = 0; base < num_tasks; base += MAX_TASKS) {
        const int64_t left = num_tasks - base;
        worker.tasks(int(left < MAX_TASKS ? left : MAX_TASKS), [&](int task) {
            const int64_t item = (base + task) / groups;
            const int group = int((base + task) % groups);
            int seq = 0;
            for (int above = seqs; above - seq > 1;) {
                int middle = (seq + above) / 2;
                (memory.starts[middle] <= item ? seq : above) = middle;
            }
            const int64_t row = plan.batch.query_start[seq], own = item - memory.starts[seq];
            const float *q = query + row * query_stride + group * width;
            Out *to = out + row * out_stride + group * width;
            if (plan.tokens(seq) == 1)
                run_chunk<T, PAIRS>(plan, seq, own, group, !plan.has_parts(seq), q, part(item, group), to,
                             memory.work);
            else
                run_tile<T, PAIRS>(plan, seq, own, group, q, query_stride, to, out_stride, memory.work);
        });
    }
#ifdef OCTAVO_AMX
    if (has_tiles) release_tiles();
#endif
    if (!has_parts) return;
    worker.tasks(seqs * groups, [&](int task) {
        const int seq = task / groups, group = task % groups;
        if (plan.has_parts(seq))
            join_parts(plan, plan.num_items(seq), part(memory.starts[seq], group),
                       out + plan.batch.query_start[seq] * out_stride + group * width);
    });
}

}  // namespace paged

// Bytes of `scratch` of paged_attention, for all threads together.
inline size_t attention_scratch_bytes(const Attention &attention, const KVLayer &kv,
                                      const Batch &batch, int num_threads) {
    paged::Memory memory(paged::Plan(attention, kv, batch), 0, 0, num_threads);
    return memory.end + 64;  // `scratch` begins anywhere
}

// query [T, H, D], roped but not scaled, in rows of query_stride numbers → out [T, H · D] in
// rows of out_stride, of Out = float or bf16. All threads of a job call it; it ends with a barrier.
// scratch: attention_scratch_bytes of the same batch, the same for all threads.
template <class Out>
void paged_attention(Worker &worker, const Attention &attention, const KVLayer &kv,
                     const Batch &batch, const float *query, int64_t query_stride, Out *out,
                     int64_t out_stride, uint8_t *scratch) {
    const paged::Plan plan(attention, kv, batch);
    auto go = [&](auto number) {
        using T = decltype(number);
        if (attention.exact || !paged::USES_PAIRS<T>)
            paged::attend<T, false>(worker, plan, query, query_stride, out, out_stride, scratch);
        else
            paged::attend<T, paged::USES_PAIRS<T>>(worker, plan, query, query_stride, out,
                                                   out_stride, scratch);
    };
    switch (kv.type) {
        case KVType::f32: return go(float());
        case KVType::bf16: return go(bf16());
        case KVType::f16: return go(f16());
        case KVType::int8: return go(int8_t());
    }
}

}  // namespace octavo::OCTAVO_ISA
