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


if __name__ == "__main__":
    compile_instead_of_launching()
    sample(50_257)
    sample(151_936)
