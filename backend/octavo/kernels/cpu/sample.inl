// The next token of each row of logits; see kernels.reference.greedy.

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

}  // namespace octavo::OCTAVO_ISA
