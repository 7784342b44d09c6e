// A large step in parts, one after the other: the activations of more tokens would leave the second
// cache between one product and the next. A part may end within a sequence, whose later tokens find
// the keys and values of the earlier ones stored.

namespace octavo::OCTAVO_ISA {

constexpr int PART_TOKENS = 512;

// f(part, samples, first, count) for each part of about the same size: its tokens `samples`, of
// which the first is the batch's sample `first`, have their logits wanted. Those of the batch are
// in rising order.
template <class F>
void for_each_part(const Batch &b, const int64_t *sample_indices, int num_samples, F &&f) {
    const int parts = (b.num_tokens + PART_TOKENS - 1) / PART_TOKENS;
    if (parts <= 1) return f(b, sample_indices, 0, num_samples);
    int64_t query_start[PART_TOKENS + 1], context_lens[PART_TOKENS], samples[PART_TOKENS];
    int seq = 0, sample = 0;
    for (int i = 0; i < parts; i++) {
        const int64_t begin = int64_t(b.num_tokens) * i / parts;
        const int64_t end = int64_t(b.num_tokens) * (i + 1) / parts;
        while (b.query_start[seq + 1] <= begin) seq++;
        Batch part = b;
        part.token_ids += begin;
        part.positions += begin;
        part.slot_mapping += begin;
        part.block_tables += seq * b.table_stride;
        part.num_tokens = int(end - begin);
        part.num_seqs = 0;
        query_start[0] = 0;
        for (int s = seq; s < b.num_seqs && b.query_start[s] < end; s++) {
            const int64_t stop = std::min(b.query_start[s + 1], end);
            context_lens[part.num_seqs++] = b.context_lens[s] - (b.query_start[s + 1] - stop);
            query_start[part.num_seqs] = stop - begin;
        }
        part.query_start = query_start;
        part.context_lens = context_lens;
        part.num_decodes = std::min(std::max(b.num_decodes - seq, 0), part.num_seqs);
        const int first = sample;
        for (; sample < num_samples && sample_indices[sample] < end; sample++)
            samples[sample - first] = sample_indices[sample] - begin;
        f(part, samples, first, sample - first);
    }
}

}  // namespace octavo::OCTAVO_ISA
