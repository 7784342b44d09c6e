// The next token of each row of logits; see kernels.reference.greedy and sample.

namespace octavo::OCTAVO_ISA {

// The most likely token, the first of equal ones, and whether the largest logit is finite.
OCTAVO_INLINE int64_t most_likely(const float *logits, int n, bool *is_finite) {
    vf best = splat(-INFINITY);
    vi at = {}, bad = {};
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int i = 0; i < n; i += LANES) {
        vf x = load_or(logits + i, n - i, -INFINITY);
        vi above = greater(x, best);
        best = select(above, x, best);
        at = (above & (lane + i)) | (~above & at);
        bad |= is_nan(x);
    }
    float top = -INFINITY;
    int64_t token = 0;
    bool is_bad = false;
    for (int l = 0; l < LANES; l++) {
        if (best[l] > top || (best[l] == top && at[l] < token)) top = best[l], token = at[l];
        is_bad |= bad[l] != 0;
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

constexpr int BLOCK = 256;  // tokens whose sum and largest are known

// The probabilities of one row relative to the most likely token's, which has 1.
class Weights {
   public:
    static size_t bytes(int n) {
        return num_blocks(n) * BLOCK * sizeof(float) +
               padded(num_blocks(n)) * (sizeof(float) + sizeof(double));
    }

    Weights(int n, uint8_t *memory)
        : n_(n),
          blocks_(num_blocks(n)),
          sums_(reinterpret_cast<double *>(memory)),
          largest_(reinterpret_cast<float *>(sums_ + padded(blocks_))),
          all_(largest_ + padded(blocks_)) {}

    // Logits of which the largest is finite, none is above it or not a number.
    void set(const float *logits, float largest, float temperature, float min_p) {
        // Finite and above zero, for −∞ of a logit to stay so and zero of the largest.
        const float scale = std::min(std::max(1 / temperature, FLT_MIN), FLT_MAX);
        const vf least = splat(std::min(min_p, 1.0f));
        total_ = 0;
        for (int block = 0; block < blocks_; block++) {
            vf top = {};
            Sum sum;
            for (int i = block * BLOCK; i < (block + 1) * BLOCK; i += LANES) {
                vf x = exp((load_or(logits + i, n_ - i, -INFINITY) - largest) * scale);
                x = select(greater(least, x), vf{}, x);
                store(all_ + i, x);
                top = max(top, x);
                sum.add(x);
            }
            largest_[block] = OCTAVO_ISA::largest(top);
            total_ += sums_[block] = sum.total();
        }
        for (int block = blocks_; block < padded(blocks_); block++) largest_[block] = 0;
    }

    void cut_tail(int64_t top_k, float top_p) {
        Cut cut = {1, n_, total_};
        if (top_k > 0 && top_k < n_) {
            // The largest ones of top_k blocks are that many tokens: the last is not below them.
            if (top_k <= blocks_) cut = find(largest_, blocks_, nullptr, 1, {top_k, INFINITY});
            cut = find(all_, n_, largest_, cut.bits, {top_k, INFINITY});
        } else if (top_p < 1) {
            // All that is below this is not as much as what top_p leaves out.
            const double rest = 0.999 * (1 - std::max(double(top_p), 0.0)) * total_;
            cut.bits = std::max(1u, to_bits(float(rest / n_)));
        }
        if (top_p < 1) {
            const Cut own = find(all_, n_, largest_, cut.bits, {INT64_MAX, top_p * cut.sum});
            if (own.bits > cut.bits || own.ties < cut.ties) cut = own;
        }
        apply(cut);
    }

    // By the inverse of the cumulative distribution, in the order of the tokens.
    int64_t pick(double uniform) const {
        const double target = uniform * total_;
        double before = 0;
        const int begin = reach(sums_, blocks_, target, &before) * BLOCK;
        return begin + reach(all_ + begin, BLOCK, target, &before);
    }

   private:
    // Weights are not negative, so they are in the order of their bits. Those above `bits` stay,
    // and of those equal to it as many as `ties`, the first ones; the sum of all that.
    struct Cut {
        uint32_t bits;
        int64_t ties;
        double sum;
    };

    // Of the largest weights: as many as reach one of the two.
    struct Limit {
        int64_t count;
        double sum;
    };

    struct Bucket {
        int64_t count;
        double sum;
    };

    static int num_blocks(int n) { return (n + BLOCK - 1) / BLOCK; }
    static int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

    // Where the n weights, of which none below `least` matters, reach the limit: ten bits after
    // ten, each time within the bucket in which it was. All from `least` on if nowhere. `largest`:
    // of each block, or null.
    static Cut find(const float *weights, int n, const float *largest, uint32_t least,
                    Limit limit) {
        Bucket buckets[1024];
        uint32_t begin = 0, end = 1u << 30;
        int64_t count = 0;
        double sum = 0;
        for (int shift = 20; shift >= 0; shift -= 10) {
            memset(buckets, 0, sizeof buckets);
            const float first = from_bits(least);
            const vf below = splat(from_bits(least - 1)), above = splat(from_bits(end));
            for (int block = 0; block < n; block += BLOCK) {
                if (largest && largest[block / BLOCK] < first) continue;
                for (int i = block; i < std::min(n, block + BLOCK); i += LANES) {
                    const vf x = load(weights + i);
                    uint32_t in = lanes(greater(x, below) & greater(above, x));
                    for (; in; in &= in - 1) {
                        const float weight = weights[i + __builtin_ctz(in)];
                        Bucket &own = buckets[to_bits(weight) >> shift & 1023];
                        own.count++;
                        own.sum += weight;
                    }
                }
            }
            int at = 1023;
            for (; at >= 0; at--) {
                const Bucket &own = buckets[at];
                if (own.count > 0 &&
                    (count + own.count >= limit.count || sum + own.sum >= limit.sum))
                    break;
                count += own.count;
                sum += own.sum;
            }
            if (at < 0) return {least, n, sum};
            begin += uint32_t(at) << shift;
            end = begin + (1u << shift);
            least = std::max(least, begin);
            if (shift == 0) {
                const double weight = from_bits(begin);
                const double wanted =
                    std::min(double(limit.count - count), std::ceil((limit.sum - sum) / weight));
                const int64_t ties = std::max(1.0, std::min(wanted, double(buckets[at].count)));
                return {begin, ties, sum + double(ties) * weight};
            }
        }
        __builtin_unreachable();
    }

    void apply(Cut cut) {
        const float first = from_bits(cut.bits);
        const vf below = splat(from_bits(cut.bits - 1)), equal = splat(first);
        total_ = 0;
        for (int block = 0; block < blocks_; block++) {
            sums_[block] = 0;
            if (largest_[block] < first) continue;
            Sum sum;
            for (int i = block * BLOCK; i < (block + 1) * BLOCK; i += LANES) {
                const vf x = load(all_ + i);
                const vi stays = greater(x, below);
                store(all_ + i, select(stays, x, vf{}));
                uint32_t tied = lanes(stays & ~greater(x, equal));
                for (; tied; tied &= tied - 1)
                    if (cut.ties-- <= 0) all_[i + __builtin_ctz(tied)] = 0;
                sum.add(load(all_ + i));
            }
            total_ += sums_[block] = sum.total();
        }
    }

    // The first at which `before` and all up to it exceed the target, and then `before` is without
    // it; the last above zero where rounding keeps them from that.
    template <class T>
    static int reach(const T *x, int n, double target, double *before) {
        int last = 0;
        double sum = *before;
        for (int i = 0; i < n && !(sum > target); i++) {
            if (!(x[i] > 0)) continue;
            last = i;
            *before = sum;
            sum += x[i];
        }
        return last;
    }

    int n_, blocks_;
    double total_ = 0;
    double *sums_;
    float *largest_, *all_;
};

inline size_t sample_bytes(int64_t vocabulary, int num_threads) {
    return num_threads * Weights::bytes(int(vocabulary));
}

// memory: sample_bytes, from a multiple of 64 on.
inline void sample(Worker &w, const float *logits, int rows, int64_t vocabulary,
                   const Sampling &sampling, int64_t *tokens, uint8_t *memory) {
    const int n = int(vocabulary);
    Weights weights(n, memory + w.id * Weights::bytes(n));
    w.tasks(rows, [&](int row) {
        const float *own = logits + row * vocabulary;
        bool is_finite;
        tokens[row] = most_likely(own, n, &is_finite);
        if (!(sampling.temperature[row] > 0) || !is_finite) return;
        weights.set(own, own[tokens[row]], sampling.temperature[row], sampling.min_p[row]);
        if (sampling.top_k[row] > 0 || sampling.top_p[row] < 1)
            weights.cut_tail(sampling.top_k[row], sampling.top_p[row]);
        tokens[row] = weights.pick(sampling.uniform[row]);
    });
}

}  // namespace octavo::OCTAVO_ISA
