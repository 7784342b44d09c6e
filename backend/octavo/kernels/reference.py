"""Each operator in plain torch: the specification, the tests' oracle, the last-resort fallback.

Those that know KV memory are in `reference_kv`. Letters in shapes: T tokens, S sequences,
D head_dim, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in], bias [out] → [T, out]."""
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32.

    x [..., N], weight [N] or a row for each of x's second to last dimension → [..., N] of x's
    type. The product with weight is taken in weight's type, so that a float32 weight keeps a
    16 bit x from being rounded twice. Zhang and Sennrich, 2019, arXiv:1910.07467.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    return ((wide * scale).to(weight.dtype) * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual). All [T, N]; `residual` is overwritten by the sum."""
    residual += x
    return rms_norm(residual, weight, eps), residual


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [T, heads, D] by cos, sin [T, R/2], float32.

    The halves of a head's first R numbers are rotated against each other, the layout of Hugging
    Face checkpoints; those behind R stay. Su et al., 2021, arXiv:2104.09864.
    """
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second, rest = x.float().tensor_split((half, 2 * half), dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(rotated, dim=-1).to(x.dtype)


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) · up, with x [T, 2·N] = gate and up side by side → [T, N]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh_mul(x: Tensor) -> Tensor:
    """gelu(gate) · up by gelu's tanh form, with x [T, 2·N] = gate and up side by side → [T, N].

    Hendrycks and Gimpel, 2016, arXiv:1606.08415.
    """
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def apply_softcap(x: Tensor, cap: float) -> Tensor:
    """tanh(x / cap) · cap, which keeps x within ±cap. Gemma 2, 2024, arXiv:2408.00118."""
    return torch.tanh(x / cap) * cap


def penalize(
    logits: Tensor,
    token_ids: Tensor,
    counts: Tensor,
    repetition: float,
    frequency: float,
    presence: float,
) -> None:
    """Makes tokens that have come before less likely: logits [V] of one sequence, in place.

    token_ids [K] int64: the distinct tokens of prompt and output; counts [K] int64: how often
    each is in the output. First repetition (Keskar et al., 2019, arXiv:1909.05858): a positive
    logit is divided by it, another one multiplied. Then logit − frequency · count − presence ·
    (count > 0), as in OpenAI's API.
    """
    seen = logits[token_ids]
    seen = torch.where(seen > 0, seen / repetition, seen * repetition)
    logits[token_ids] = seen - frequency * counts - presence * (counts > 0)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of logits [S, V] the most likely token, of equal ones the first, [S] int64, and
    whether its logit is finite, [S] bool: false with any NaN or +∞ in the row, or with −∞ alone.
    """
    token_ids = logits.argmax(-1)  # of a NaN, if there is one
    return token_ids, logits.gather(1, token_ids[:, None]).squeeze(1).isfinite()


def uniform_numbers(seeds: Tensor, indices: Tensor) -> Tensor:
    """A number in [0, 1) for each (seed, index of the output token): [S] int64 each → [S] float64.

    Two rounds of SplitMix64's finalizer (Steele et al., 2014), a function of the pair alone: the
    same alone and in a batch, before and after a preemption. 32 bits of it, so that no product
    with a sum of probabilities rounds up to that sum. int64 wraps as the uint64 of the original.
    """

    def shifted(state: Tensor, bits: int) -> Tensor:
        return (state >> bits) & ((1 << (64 - bits)) - 1)  # int64's own shift copies the sign

    state = seeds
    for addend in (torch.zeros_like(indices), indices):
        state = state + (addend + 1) * _signed(0x9E3779B97F4A7C15)
        state = (state ^ shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ shifted(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ shifted(state, 31)
    return shifted(state, 32).double() / 2.0**32


def _signed(bits: int) -> int:
    """64 bits as torch's int64 holds them."""
    return bits - 2**64 if bits >= 2**63 else bits


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """One token for each row of logits [S, V] float32 → [S] int64.

    temperature [S]: 0 takes the most likely token. min_p [S]: tokens less likely than that share
    of the most likely one's probability are cut; 0 is off. top_k [S] int64: 0 or less is off.
    top_p [S]: the smallest set of most likely tokens whose probability reaches it; 1 is off.
    uniform [S] in [0, 1) float64 picks by the inverse of the cumulative distribution, so that a
    row's token depends on its own logits and number alone, whatever the batch.
    """
    tokens = logits.argmax(-1)
    warm = (temperature > 0).nonzero().squeeze(1)
    if len(warm) == 0:
        return tokens
    # Divided by a tiny temperature a logit overflows, so the largest becomes 0 before.
    warm_logits = logits[warm]
    warm_logits = warm_logits - warm_logits.amax(-1, keepdim=True)
    probs = (warm_logits / temperature[warm, None]).softmax(-1)
    top_k, top_p, min_p = top_k[warm], top_p[warm], min_p[warm]
    if bool((min_p > 0).any()):
        probs = probs.masked_fill(probs < min_p[:, None] * probs.amax(-1, keepdim=True), 0)
    cut = ((top_k > 0) | (top_p < 1)).nonzero().squeeze(1)
    if len(cut) > 0:
        probs[cut] = _cut_tail(probs[cut], top_k[cut], top_p[cut])
    cumulative = probs.double().cumsum(-1)
    target = uniform[warm] * cumulative[:, -1]
    picked = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    tokens[warm] = picked.clamp_(max=logits.shape[1] - 1)
    return tokens


def _cut_tail(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """probs [S, V] with zeros outside of each row's top_k and top_p; at least one token stays."""
    vocabulary = probs.shape[1]
    ordered, order = probs.sort(stable=True, dim=-1, descending=True)
    rank = torch.arange(vocabulary, device=probs.device)
    limit = torch.where(top_k > 0, top_k, vocabulary)
    ordered.masked_fill_(rank >= limit[:, None], 0)
    # top_p counts within what top_k left, as in vLLM and transformers.
    before = ordered.cumsum(-1) - ordered
    reached = before >= top_p[:, None] * ordered.sum(-1, keepdim=True)
    reached[:, 0] = False
    ordered.masked_fill_(reached, 0)
    return torch.zeros_like(probs).scatter_(1, order, ordered)
