"""Compiles the GPU's operators for Hopper, on a machine without a GPU; a program of its own.

The interpreter takes what the compiler refuses, such as a type that changes in a loop or a branch.
"""

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead_of_launching() -> None:
    driver.set_active(Hopper())
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, warmup=True, **options)
        assert kernel.asm["cubin"]
        print(self.fn.__name__)

    JITFunction.run = compile_only


def sample(vocab: int) -> None:
    from octavo.kernels.gpu import penalties, sampling
    from octavo.kernels.gpu.chosen_logprobs import chosen_logprobs

    ids, numbers, logits = torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.empty(3, vocab)
    sampling.greedy(logits)
    uniform = sampling.uniform_numbers(ids, ids)
    for may_cut in (True, False):
        sampling.sample(logits, numbers, ids, numbers, numbers, uniform, may_cut=may_cut)
    chosen_logprobs(logits, ids)
    history = torch.empty(3, vocab, dtype=torch.int32)
    penalties.penalize_rows(logits, history, ids, numbers, numbers, numbers)
    penalties.count_tokens(history, ids, ids)
    penalties.mark_prompt(history, ids, ids)


def rows_and_blocks(dtype: torch.dtype, cache: torch.dtype, dim: int) -> None:
    from octavo.kernels import gpu

    tokens, heads, groups = 3, 8, 2
    x = torch.empty(tokens, heads * dim, dtype=dtype)
    weight = torch.empty(heads * dim, dtype=dtype)
    gpu.rms_norm(x, weight, 1e-6)
    gpu.add_rms_norm(x, x.clone(), weight.float(), 1e-6)
    gpu.silu_mul(x)
    gpu.gelu_tanh_mul(x)
    pool = torch.empty(4, 8192, dtype=torch.uint8)
    blocks = torch.zeros(2, dtype=torch.int64)
    gpu.scatter_blocks(pool, blocks, gpu.gather_blocks(pool, blocks))
    keys = torch.empty(4, 16, groups, dim).to(cache)
    scales = [torch.empty(4, 16, groups).half()] * 2 if cache.itemsize == 1 else []
    for norm in (None, torch.empty(heads + groups, dim, dtype=dtype)):
        gpu.rope_and_store(
            torch.empty(tokens, heads + 2 * groups, dim, dtype=dtype), norm, 1e-6,
            torch.empty(tokens, dim // 2), torch.empty(tokens, dim // 2), keys, keys,
            torch.zeros(tokens, dtype=torch.int64), *scales, num_heads=heads,
        )  # fmt: skip


if __name__ == "__main__":
    compile_instead_of_launching()
    rows_and_blocks(torch.bfloat16, torch.bfloat16, 128)
    rows_and_blocks(torch.bfloat16, torch.int8, 80)
    rows_and_blocks(torch.float16, torch.float8_e4m3fn, 64)
    rows_and_blocks(torch.float32, torch.float16, 64)
    sample(50_257)
    sample(151_936)
