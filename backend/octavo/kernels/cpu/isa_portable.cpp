// What any processor of the architecture has.
#define OCTAVO_ISA portable
#include "isa.inl"

namespace octavo {

const Kernels *portable_kernels() { return &portable::table; }

}  // namespace octavo
