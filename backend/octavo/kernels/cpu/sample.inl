// The next token of each row of logits; see kernels.reference for what each does.

namespace octavo::OCTAVO_ISA {

// The most likely token, the first of equal ones, and whether the largest logit is finite.
OCTAVO_INLINE int64_t most_likely(const float *logits, int n, bool *is_finite) {
    vf best = splat(-INFINITY);
    vi at = {}, bad = {};
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf x = load(logits + i);
        vi above = x > best;
        best = select(above, x, best);
        at = (above & (lane + i)) | (~above & at);
        bad |= x != x;
    }
    float top = -INFINITY;
    int64_t token = 0;
    bool is_bad = false;
    for (int l = 0; l < LANES && l < n; l++) {
        if (best[l] > top || (best[l] == top && at[l] < token)) top = best[l], token = at[l];
        is_bad |= bad[l] != 0;
    }
    for (; i < n; i++) {
        if (logits[i] > top) top = logits[i], token = i;
        is_bad |= std::isnan(logits[i]);
    }
    *is_finite = !is_bad && std::isfinite(top);
    return token;
}

inline void greedy(Worker &w, const float *logits, int rows, int64_t vocabulary, int64_t *tokens,
                   uint8_t *are_finite) {
    w.tasks(rows, [&](int row) {
        bool is_finite;
        tokens[row] = most_likely(logits + row * vocabulary, int(vocabulary), &is_finite);
        are_finite[row] = is_finite;
    });
}

// Reads `bytes` by all threads in equal parts; for measuring. Returns something of what it read.
inline int32_t read_through(Worker &w, const uint8_t *data, int64_t bytes) {
    const int64_t part = bytes / w.count / 256 * 256, begin = part * w.id;
    vi a = {}, b = {}, c = {}, d = {};
    for (int64_t i = begin; i < begin + part; i += 256) {
        a ^= load_as<vi>(data + i);
        b ^= load_as<vi>(data + i + 64);
        c ^= load_as<vi>(data + i + 128);
        d ^= load_as<vi>(data + i + 192);
    }
    vi all = a ^ b ^ c ^ d;
    int32_t x = 0;
    for (int i = 0; i < LANES; i++) x ^= all[i];
    return x;
}

}  // namespace octavo::OCTAVO_ISA
