// What works on one row or head at a time: norms, rotary embedding.

namespace octavo::OCTAVO_ISA {

// 1 / sqrt(mean(x²) + eps)
OCTAVO_INLINE float inverse_rms(const float *x, int n, float eps) {
    vf squares = {};
    for (int i = 0; i < n; i += LANES) {
        vf v = load(x + i, n - i);
        squares += v * v;
    }
    return 1.0f / std::sqrt(sum(squares) / float(n) + eps);
}

// out = x / rms(x) · weight; out may be x.
OCTAVO_INLINE void rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    const float factor = inverse_rms(x, n, eps);
    for (int i = 0; i < n; i += LANES)
        store(out + i, load(x + i, n - i) * factor * load(weight + i, n - i), n - i);
}

// Rotates the halves of the first 2 · half numbers of a head against each other, in place.
OCTAVO_INLINE void rotate(float *x, const float *cosines, const float *sines, int half) {
    for (int i = 0; i < half; i += LANES) {
        const int n = half - i;
        vf c = load(cosines + i, n), s = load(sines + i, n);
        vf first = load(x + i, n), second = load(x + half + i, n);
        store(x + i, first * c - second * s, n);
        store(x + half + i, second * c + first * s, n);
    }
}

}  // namespace octavo::OCTAVO_ISA
