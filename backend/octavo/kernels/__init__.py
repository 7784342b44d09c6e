"""The operators of the decode loop. They know tensors and numbers, never sequences or configs.

Each op is stated in `reference` in plain torch: specification, oracle of the tests and
last-resort fallback. Faster implementations are chosen here, under the same names.
"""

from octavo.kernels.reference import (
    add_rms_norm,
    apply_rope,
    linear,
    paged_attention,
    rms_norm,
    sample,
    silu_mul,
    store_kv,
)

__all__ = [
    "add_rms_norm",
    "apply_rope",
    "linear",
    "paged_attention",
    "rms_norm",
    "sample",
    "silu_mul",
    "store_kv",
]
