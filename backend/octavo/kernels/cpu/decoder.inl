// One step of a decoder, or a part of a large one, as one job: all threads go through its phases
// together. The residual stream and what matrices give are float32; what they take is as their
// format says.

namespace octavo::OCTAVO_ISA {

// Cuts a workspace up; with no memory it counts what is needed.
struct Cutter {
    uint8_t *at;
    size_t used = 0;
    template <class T>
    T *take(size_t count) {
        T *part = reinterpret_cast<T *>(at + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return part;
    }
};

// From one row of s.attended to the next. What is quantized by row is kept in floats until the row
// is whole.
OCTAVO_INLINE int64_t attended_bytes(const Matrix &m) {
    return input_kind(m.format) == InputKind::int8 ? m.padded_inputs * 4 : row_bytes(m);
}

struct StepMemory {
    float *residual, *added, *wide;  // [T, hidden], [T, hidden], [T or threads, widest output]
    uint8_t *inputs, *attended;      // rows for the next matrix; [T, H · D] or its rows
    float *input_scales;             // [T]
    uint8_t *scratch;                // of attention
    int64_t wide_stride;

    static StepMemory take(const Decoder &d, const Batch &b, int num_threads, Cutter &p) {
        const size_t rows = b.num_tokens;
        size_t widest = d.hidden, input_row = 0, attended_row = 0, scratch = 0;
        const auto takes = [&](const Matrix &m) {
            input_row = std::max<size_t>(input_row, row_bytes(m));
            attended_row = std::max<size_t>(attended_row, attended_bytes(m));
        };
        for (int i = 0; i < d.num_layers; i++) {
            const DecoderLayer &layer = d.layers[i];
            widest = std::max<size_t>(widest, layer.qkv.outputs);
            for (const Matrix *m : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
                takes(*m);
            scratch = std::max(
                scratch, attention_scratch_bytes(layer.attention, layer.kv, b, num_threads));
        }
        takes(d.lm_head);
        StepMemory s;
        s.wide_stride = (widest + 15) / 16 * 16;
        s.residual = p.take<float>(rows * d.hidden);
        s.added = p.take<float>(rows * d.hidden);
        s.wide = p.take<float>(std::max<size_t>(rows, num_threads) * s.wide_stride);
        // AMX reads whole tiles of 16 rows.
        s.inputs = p.take<uint8_t>((rows + 15) / 16 * 16 * input_row);
        s.attended = p.take<uint8_t>((rows + 15) / 16 * 16 * attended_row);
        s.input_scales = p.take<float>((rows + 15) / 16 * 16);
        s.scratch = p.take<uint8_t>(scratch);
        return s;
    }
};

enum Phase { EMBED, NORM, QKV, STORE, ATTEND, OUTPUT, GATE_UP, DOWN, LM_HEAD, PHASES };
constexpr const char *PHASE_NAMES[PHASES] = {"embed",  "norm",    "qkv",  "store", "attend",
                                             "output", "gate_up", "down", "lm_head"};

// Tells a timeline, if there is one, where a thread's time goes; without one a phase costs a branch.
class Clock {
   public:
    Clock(Worker &w, Timeline *timeline) : w_(w), timeline_(timeline) {
        if (!timeline) return;
        w.waited = &waited_;
        began_ = now_ns();
        if (w.id == 0) mark(-1, began_);
    }
    ~Clock() { w_.waited = nullptr; }
    Clock(const Clock &) = delete;

    void end(Phase phase) {
        if (timeline_) keep(phase);
    }

   private:
    [[gnu::noinline]] void keep(Phase phase) {
        const int64_t now = now_ns();
        __atomic_fetch_add(timeline_->spent_ns + phase, now - began_, __ATOMIC_RELAXED);
        __atomic_fetch_add(timeline_->waited_ns + phase, waited_, __ATOMIC_RELAXED);
        if (w_.id == 0) mark(phase, now);
        began_ = now;
        waited_ = 0;
    }

    void mark(int64_t phase, int64_t ended) {
        const int index = timeline_->count++;
        if (index >= timeline_->capacity) return;
        timeline_->marks[2 * index] = phase;
        timeline_->marks[2 * index + 1] = ended;
    }

    Worker &w_;
    Timeline *timeline_;
    int64_t began_ = 0, waited_ = 0;
};

struct Step {
    Worker &w;
    const Decoder &d;
    const Batch &b;
    StepMemory s;

    Inputs inputs_of(const Matrix &m, const uint8_t *rows, int count) const {
        return {rows, row_bytes(m), s.input_scales, count};
    }

    // Rows of floats into rows for m, at s.inputs. f(row, buffer) gives a row's floats.
    template <class F>
    void prepare(const Matrix &m, int count, F &&f) {
        const int64_t bytes = row_bytes(m);
        w.tasks(count, [&](int row) {
            prepare_row(m.format, f(row), m.inputs, m.padded_inputs, s.inputs + row * bytes,
                        s.input_scales + row);
        });
    }

    void embed() {
        w.tasks(b.num_tokens, [&](int row) {
            float *to = s.residual + int64_t(row) * d.hidden;
            const int64_t from = b.token_ids[row] * d.hidden;
            for (int i = 0; i < d.hidden; i += LANES) {
                const int n = d.hidden - i;
                vf x;
                if (d.is_bf16) {
                    // The scaled embedding is rounded to its own type, as it was in training.
                    x = load(static_cast<const bf16 *>(d.embedding) + from + i, n);
                    if (d.embedding_scale != 1.0f) {
                        bf16 rounded[LANES];
                        store(rounded, x * d.embedding_scale);
                        x = load(rounded);
                    }
                } else {
                    x = load(static_cast<const float *>(d.embedding) + from + i, n) *
                        d.embedding_scale;
                }
                store(to + i, x, n);
            }
        });
    }

    // residual += added (its norm, where there is one); s.inputs = norm of that, for m. `rows`
    // picks the tokens, each once, or is null for all.
    void add_norm(const float *added, const float *added_norm, const float *norm, const Matrix &m,
                  const int64_t *rows, int count) {
        prepare(m, count, [&](int index) {
            const int64_t row = rows ? rows[index] : index;
            float *residual = s.residual + row * d.hidden;
            if (added) {
                float *more = s.added + row * d.hidden;
                if (added_norm) rms_norm(more, added_norm, d.hidden, d.eps, more);
                for (int i = 0; i < d.hidden; i += LANES) {
                    const int n = d.hidden - i;
                    store(residual + i, load(residual + i, n) + load(more + i, n), n);
                }
            }
            // One row a thread, which is still in its cache when it becomes inputs.
            float *normed = s.wide + w.id * s.wide_stride;
            rms_norm(residual, norm, d.hidden, d.eps, normed);
            return normed;
        });
    }

    void store_heads(const DecoderLayer &layer) {
        const int heads = layer.attention.num_heads, kv_heads = layer.kv.num_kv_heads;
        const int dim = layer.kv.head_dim;
        w.tasks(b.num_tokens, [&](int row) {
            float *qkv = s.wide + row * s.wide_stride;
            const int64_t position = b.positions[row] * layer.rotary_half;
            for (int head = 0; head < heads + kv_heads; head++) {
                float *x = qkv + head * dim;
                if (layer.qk_norm) rms_norm(x, layer.qk_norm + head * dim, dim, d.eps, x);
                rotate(x, layer.cosines + position, layer.sines + position, layer.rotary_half);
            }
            if (b.slot_mapping[row] >= 0)
                store_token(layer.kv, b.slot_mapping[row], qkv + heads * dim,
                            qkv + (heads + kv_heads) * dim);
        });
    }

    void attend(const DecoderLayer &layer) {
        const Matrix &m = layer.output;
        const InputKind kind = input_kind(m.format);
        const int64_t bytes = attended_bytes(m);
        if (kind == InputKind::activation) {
            clear_padding<Activation>(m);
            paged_attention(w, layer.attention, layer.kv, b, s.wide, s.wide_stride,
                            reinterpret_cast<Activation *>(s.attended), bytes / sizeof(Activation),
                            s.scratch);
        } else {
            clear_padding<float>(m);
            paged_attention(w, layer.attention, layer.kv, b, s.wide, s.wide_stride,
                            reinterpret_cast<float *>(s.attended), bytes / sizeof(float),
                            s.scratch);
        }
        if (kind == InputKind::int8) {
            prepare(m, b.num_tokens, [&](int row) {
                return reinterpret_cast<float *>(s.attended + row * bytes);
            });
        }
    }

    // What lies behind a row's numbers meets weights of zero, which NaN would survive.
    template <class T>
    void clear_padding(const Matrix &m) {
        if (m.padded_inputs == m.inputs || w.id != 0) return;
        for (int row = 0; row < b.num_tokens; row++)
            memset(s.attended + row * attended_bytes(m) + m.inputs * sizeof(T), 0,
                   (m.padded_inputs - m.inputs) * sizeof(T));
    }

    void gate(const DecoderLayer &layer) {
        const Matrix &m = layer.gate_up, &next = layer.down;
        const int64_t bytes = attended_bytes(next);
        const Inputs in = inputs_of(m, s.inputs, b.num_tokens);
        const Gate kind = Gate(layer.gate);
        if (input_kind(next.format) == InputKind::activation) {
            clear_padding<Activation>(next);
            gated_linear(w, m, kind, in, reinterpret_cast<Activation *>(s.attended),
                         bytes / sizeof(Activation));
        } else {
            clear_padding<float>(next);
            gated_linear(w, m, kind, in, reinterpret_cast<float *>(s.attended),
                         bytes / sizeof(float));
        }
        if (input_kind(next.format) == InputKind::int8) {
            prepare(next, b.num_tokens, [&](int row) {
                return reinterpret_cast<float *>(s.attended + row * bytes);
            });
        }
    }

    const uint8_t *rows_for(const Matrix &m) const {
        return input_kind(m.format) == InputKind::int8 ? s.inputs : s.attended;
    }

    void run(const int64_t *sample_indices, int num_samples, float *logits, Timeline *timeline) {
        const int count = b.num_tokens;
        Clock clock(w, timeline);
        embed();
        clock.end(EMBED);
        const float *added_norm = nullptr;
        for (int i = 0; i < d.num_layers; i++) {
            const DecoderLayer &layer = d.layers[i];
            add_norm(i ? s.added : nullptr, added_norm, layer.input_norm, layer.qkv, nullptr, count);
            clock.end(NORM);
            linear(w, layer.qkv, inputs_of(layer.qkv, s.inputs, count), s.wide, s.wide_stride);
            clock.end(QKV);
            store_heads(layer);
            clock.end(STORE);
            attend(layer);
            clock.end(ATTEND);
            linear(w, layer.output, inputs_of(layer.output, rows_for(layer.output), count), s.added,
                   d.hidden);
            clock.end(OUTPUT);
            add_norm(s.added, layer.output_norm, layer.mlp_norm, layer.gate_up, nullptr, count);
            clock.end(NORM);
            gate(layer);
            clock.end(GATE_UP);
            linear(w, layer.down, inputs_of(layer.down, rows_for(layer.down), count), s.added,
                   d.hidden);
            clock.end(DOWN);
            added_norm = layer.down_norm;
        }
        if (num_samples == 0) return;
        add_norm(s.added, added_norm, d.norm, d.lm_head, sample_indices, num_samples);
        clock.end(NORM);
        last(num_samples, logits);
        clock.end(LM_HEAD);
    }

    void last(int num_samples, float *logits) {
        const float cap = d.logits_softcap;
        const int outputs = d.lm_head.outputs;
        multiply(w, d.lm_head, inputs_of(d.lm_head, s.inputs, num_samples),
                 [&](int row, int panel, const float *sums) {
                     for (int h = 0; h < 2; h++) {
                         vf x = load(sums + h * LANES);
                         if (cap > 0) x = tanh(x / cap) * cap;
                         const int begin = panel * PANEL + h * LANES;
                         if (begin < outputs)
                             store(logits + int64_t(row) * outputs + begin, x, outputs - begin);
                     }
                 });
    }
};

inline size_t step_bytes(const Decoder &d, const Batch &b, int num_threads) {
    size_t most = 0;
    for_each_part(b, nullptr, 0, [&](const Batch &part, const int64_t *, int, int) {
        Cutter p{nullptr};
        StepMemory::take(d, part, num_threads, p);
        most = std::max(most, p.used);
    });
    return most;
}

inline void forward(Pool &pool, const Decoder &d, const Batch &b, const int64_t *sample_indices,
                    int num_samples, float *logits, uint8_t *memory, Timeline *timeline) {
    for_each_part(b, sample_indices, num_samples,
                  [&](const Batch &part, const int64_t *samples, int first, int count) {
                      Cutter p{memory};
                      StepMemory s = StepMemory::take(d, part, pool.num_threads(), p);
                      float *own = logits + int64_t(first) * d.lm_head.outputs;
                      pool.run([&](Worker &w) {
                          Step{w, d, part, s}.run(samples, count, own, timeline);
                      });
                  });
}

}  // namespace octavo::OCTAVO_ISA
