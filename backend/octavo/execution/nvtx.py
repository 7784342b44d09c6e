"""Named ranges for a profiler: NVTX where there is a GPU, nothing elsewhere."""

from contextlib import AbstractContextManager, nullcontext

import torch

_HAS_CUDA = torch.version.cuda is not None
_NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str) -> AbstractContextManager[None]:
    """`with span("forward"):` shows up in Nsight Systems and torch's profiler."""
    if _HAS_CUDA and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.nvtx.range(f"octavo {name}")
    return _NOTHING
