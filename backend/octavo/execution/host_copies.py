"""Copies between host and device that neither side waits for."""

import torch
from torch import Tensor


def sent(values: Tensor | list[int], device: torch.device) -> Tensor:
    """On `device`, behind what was launched there: from pinned memory, which is used again only
    after the copies that were made from it."""
    host = torch.tensor(values, dtype=torch.int64) if isinstance(values, list) else values
    if device.type == "cuda" and not host.is_cuda:
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def fetched(tensor: Tensor) -> Tensor:
    """A copy on the host, under way until an event that is recorded behind it."""
    if not tensor.is_cuda:
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
