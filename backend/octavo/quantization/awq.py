"""AWQ (Lin et al., 2023): inputs that are large on real text are made smaller, and their weights
larger by as much before they are rounded, which so costs the product less.

What makes an input smaller is folded into what computes it: the norm before it, or the rows of the
up projection before the down projection. (The output projection's would go into the value
projection, which grouped queries share: it is left.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels import quantize_weight
from octavo.kernels.reference_weights import dequantize_weight
from octavo.models.architecture import ModelConfig

_STEPS = 20  # of the exponent, from 0 (plain rounding) up to 1


def fold_scales(
    weights: dict[str, Tensor],
    others: dict[str, Tensor],
    hessians: dict[str, Tensor],
    config: ModelConfig,
    bits: int,
    group_size: int | None,
) -> None:
    """Changes a layer's matrices, `weights`, float32, and its `others` (norms, biases as "….bias"),
    as the checkpoint stores them, so that it computes the same before anything is rounded.
    hessians: of each matrix's inputs."""
    own = config.tensor_names
    ups = weights[own.gate_up[-1]][-config.intermediate_size :]  # of a stacked one, the lower half
    down = "mlp.down_proj"
    scales = _best_scales([weights[down]], hessians[down], bits, group_size)
    ups /= scales[:, None]
    if (name := f"{own.gate_up[-1]}.bias") in others:
        bias = others[name].float().clone()
        bias[-config.intermediate_size :] /= scales
        others[name] = bias.to(others[name].dtype)
    weights[down] *= scales
    for names, norm in ((own.qkv, "input_layernorm"), (own.gate_up, own.mlp_norm)):
        matrices = [weights[name] for name in names]
        scales = _best_scales(matrices, hessians[names[0]], bits, group_size)
        before = others[norm].float() + config.norm_offset
        others[norm] = (before / scales - config.norm_offset).to(others[norm].dtype)
        after = others[norm].float() + config.norm_offset
        # By what the norm has become once it is rounded. One that is 0 hides its input anyway.
        folded = torch.where(after == 0, 1.0, before / after)
        for matrix in matrices:
            matrix *= folded


def _best_scales(
    weights: Sequence[Tensor], hessian: Tensor, bits: int, group_size: int | None
) -> Tensor:
    """[in], of which the geometric mean is about 1: the power of the inputs' size with the least
    squared error of the products."""
    size = hessian.diagonal().sqrt()
    size = size.clamp_min(1e-4 * float(size.max()) or 1.0)
    best, least = torch.ones_like(size), float("inf")
    for step in range(_STEPS):
        scales = size ** (step / _STEPS)
        scales /= (scales.max() * scales.min()).sqrt()
        error = 0.0
        for weight in weights:
            rounded = quantize_weight(weight * scales, bits, group_size, False)
            off = dequantize_weight(rounded) / scales - weight
            error += float(((off @ hessian) * off).sum())
        if error < least:
            best, least = scales, error
    return best
