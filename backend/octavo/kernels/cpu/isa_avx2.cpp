// AVX2 with fused products: x86 of the last ten years.
#define OCTAVO_ISA avx2
#include "isa.inl"

namespace octavo {

const Kernels *avx2_kernels() {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("f16c");
    return has ? &avx2::table : nullptr;
}

}  // namespace octavo
