// Streaming reads, for measuring.

namespace octavo::OCTAVO_ISA {

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
