"""The operators of `octavo.kernels` in the Triton language, for NVIDIA GPUs: the module that a
decoder on a GPU is given (`kernels.operators.Operators`).

Nothing here waits for the device or asks it for a size, so that a step can be a CUDA graph.
"""

from octavo.kernels.gpu.activation import gelu_tanh_mul, silu_mul
from octavo.kernels.gpu.attention import paged_attention
from octavo.kernels.gpu.blocks import gather_blocks, scatter_blocks
from octavo.kernels.gpu.linear import WARM_UP_ROWS, linear
from octavo.kernels.gpu.norm import add_rms_norm, rms_norm
from octavo.kernels.gpu.qkv import rope_and_store
from octavo.kernels.gpu.sampling import greedy, sample, uniform_numbers
from octavo.kernels.gpu.tuning import set_cache
from octavo.kernels.gpu.weights import GpuLinear, pack

__all__ = [
    "WARM_UP_ROWS",
    "GpuLinear",
    "add_rms_norm",
    "gather_blocks",
    "gelu_tanh_mul",
    "greedy",
    "linear",
    "pack",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
    "sample",
    "scatter_blocks",
    "set_cache",
    "silu_mul",
    "uniform_numbers",
]
