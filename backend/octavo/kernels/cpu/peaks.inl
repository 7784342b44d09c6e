// The machine's peaks, for measuring: streaming reads, and products without memory.

namespace octavo::OCTAVO_ISA {

// Reads `bytes` by all threads in equal parts. Returns something of what it read.
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

constexpr int SUMS = 12;  // independent ones: they hide an addition's latency, and fit the registers

// Adds products to sums in registers, `rounds` times. f(sum) adds to one.
template <class Sum, class F>
OCTAVO_INLINE void multiply_in_registers(int64_t rounds, F &&f) {
    Sum sums[SUMS] = {};
    for (Sum &sum : sums) asm volatile("" : "+x"(sum));  // or GCC would compute one for all
    for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sums[i] = f(sums[i]);
    for (int i = 1; i < SUMS; i++) sums[0] += sums[i];
    asm volatile("" ::"x"(sums[0]));  // or nothing would be computed
}

// `rounds` of the products that inputs of `kind` take, on each thread. Returns one thread's FLOPs.
inline double multiply_through([[maybe_unused]] InputKind kind, int64_t rounds) {
#ifdef OCTAVO_AMX
    if (kind != InputKind::f32) {
        configure_tiles({64});
        zero_tile<4>(), zero_tile<5>(), zero_tile<6>(), zero_tile<7>();
        const auto go = [&](auto is_integer) {
            for (int64_t round = 0; round < rounds; round++) {
                multiply_tiles<is_integer.value, 0, 4, 6>();
                multiply_tiles<is_integer.value, 1, 4, 7>();
                multiply_tiles<is_integer.value, 2, 5, 6>();
                multiply_tiles<is_integer.value, 3, 5, 7>();
            }
        };
        const bool is_integer = kind == InputKind::int8;
        is_integer ? go(std::true_type()) : go(std::false_type());
        release_tiles();
        return rounds * 4.0 * 16 * 16 * (is_integer ? 64 : 32) * 2;
    }
#endif
#ifdef __AVX512BF16__
    if (kind != InputKind::f32) {
        __m512i x = _mm512_set1_epi32(1), y = x;
        asm volatile("" : "+v"(x), "+v"(y));  // or the compiler would compute with what it knows
        if (kind == InputKind::int8)
            multiply_in_registers<vi>(rounds, [&](vi sum) { return FoursOfBytes::add(sum, x, y); });
        else
            multiply_in_registers<vf>(rounds, [&](vf sum) { return PairsOfBF16::add(sum, x, y); });
        return rounds * double(SUMS) * LANES * (kind == InputKind::int8 ? 4 : 2) * 2;
    }
#endif
    // Without dot products nothing is faster than floats.
    native x = native{} + 1;
    asm volatile("" : "+x"(x));
    multiply_in_registers<native>(rounds, [&](native sum) { return sum * x + x; });
    return rounds * double(SUMS) * WIDTH * 2;
}

}  // namespace octavo::OCTAVO_ISA
