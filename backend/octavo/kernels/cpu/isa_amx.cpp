// AVX-512 with AMX's tiles: Intel from Sapphire Rapids on. Built with OCTAVO_AMX_EMULATED it runs,
// slowly, wherever AVX-512 does.
#define OCTAVO_ISA amx
#define OCTAVO_AMX
#include "isa.inl"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace octavo {

namespace {

#ifdef OCTAVO_AMX_EMULATED
bool has_tiles() { return true; }
#else
bool has_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    if ((d & bf16) == 0 || (d & tile) == 0 || (d & int8) == 0) return false;
    // Linux lends the tiles' registers to a process, all its threads, that asks (arch_prctl,
    // ARCH_REQ_XCOMP_PERM).
    constexpr int request = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

}  // namespace

const Kernels *amx_kernels() {
    return avx512_kernels() && has_tiles() ? &amx::table : nullptr;
}

}  // namespace octavo
