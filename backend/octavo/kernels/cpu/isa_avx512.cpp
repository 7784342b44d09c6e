// AVX-512 with the dot products of bf16 and of bytes: Intel from Cooper Lake (servers) on, AMD from
// Zen 4 on.
#define OCTAVO_ISA avx512
#include "isa.inl"

namespace octavo {

const Kernels *avx512_kernels() {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    return has ? &avx512::table : nullptr;
}

}  // namespace octavo
