"""Each operator in plain torch: the specification, the tests' oracle, the last-resort fallback.

Letters in shapes: T tokens, S sequences, H query heads, G key-value heads (H a multiple of G),
D head_dim, B blocks of a table, Z tokens of a block, V vocabulary.
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


def store_kv(
    keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Writes keys, values [T, G, D] into the caches [blocks, Z, G, D] of one layer, in place.

    slot_mapping [T]: block · Z + offset, or −1 to skip the token.
    """
    if bool((slot_mapping < 0).any()):
        kept = slot_mapping >= 0
        keys, values, slot_mapping = keys[kept], values[kept], slot_mapping[kept]
    # view, not flatten: of a cache that is not contiguous flatten would fill a copy.
    key_cache.view(-1, *keys.shape[1:]).index_copy_(0, slot_mapping, keys)
    value_cache.view(-1, *values.shape[1:]).index_copy_(0, slot_mapping, values)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    num_decodes: int,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of each token to its own sequence's cached tokens.

    query [T, H, D]: sequence after sequence, the first `num_decodes` with one token each
    key_cache, value_cache [blocks, Z, G, D], where what lies behind a context may be NaN
    block_tables [S, B]
    query_start [S + 1]: where each sequence's tokens begin
    context_lens [S]: cached tokens, those of the query included, which are its last
    window: a token at position p attends to positions above p − window only, and blocks that
        lie before all of these are not read
    softcap: the cap of apply_softcap on the scaled scores
    → [T, H, D]
    """
    out = torch.empty_like(query)
    lengths = query_start.diff()
    for rows, widest in ((slice(0, num_decodes), 1), (slice(num_decodes, None), None)):
        lens = lengths[rows]
        if len(lens) == 0:
            continue
        width = widest or int(lens.max())
        # Token j of a shorter sequence is a copy of its last one, written last to its place.
        offsets = torch.minimum(torch.arange(width, device=query.device), lens[:, None] - 1)
        tokens = query_start[:-1][rows][:, None] + offsets  # [S, width]
        positions = (context_lens[rows] - lens)[:, None] + offsets
        tables, contexts = block_tables[rows], context_lens[rows]
        if window is not None:
            tables, contexts, positions = _skip_blocks(
                tables, contexts, positions, window, key_cache.shape[1]
            )
        slots = _context_slots(tables, contexts, key_cache.shape[1])
        keys, values = _gather(key_cache, slots), _gather(value_cache, slots)
        out[tokens] = _padded_attention(
            query[tokens], keys, values, positions, scale, window, softcap
        )
    return out


def _skip_blocks(
    tables: Tensor, lens: Tensor, positions: Tensor, window: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tables [S, B], lens [S] and positions [S, Q] of the same contexts without their first
    blocks, as far as no query's window reaches them."""
    skipped = (positions[:, 0] - (window - 1)).clamp_(min=0) // block_size
    columns = skipped[:, None] + torch.arange(tables.shape[1], device=tables.device)
    tables = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
    return tables, lens - skipped * block_size, positions - skipped[:, None] * block_size


def _context_slots(tables: Tensor, lens: Tensor, block_size: int) -> Tensor:
    """Slots of each context, [S, longest]. Behind a shorter one stands its own first slot: the
    mask takes it out, where another sequence's NaN would stay, as 0 × NaN is NaN."""
    positions = torch.arange(int(lens.max()), device=lens.device)
    positions = positions * (positions < lens[:, None])
    return tables.gather(1, positions // block_size) * block_size + positions % block_size


def _gather(cache: Tensor, slots: Tensor) -> Tensor:
    """cache [blocks, Z, G, D], slots [S, C] → [S, C, G, D]."""
    rows = cache.flatten(0, 1).index_select(0, slots.flatten())
    return rows.view(*slots.shape, *cache.shape[2:])


def _capped_attention(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, cap: float
) -> Tensor:
    """What scaled_dot_product_attention has no argument for: capped scores, in float32."""
    scores = apply_softcap(query.float() @ keys.float().transpose(2, 3) * scale, cap)
    weights = scores.masked_fill_(~visible, -torch.inf).softmax(-1)
    return weights.to(values.dtype) @ values


def _padded_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query [S, Q, H, D] at positions [S, Q]; keys, values [S, C, G, D] → [S, Q, H, D].

    The H/G query heads of a group are folded into the query's length, so that keys and values
    are never repeated.
    """
    sequences, width, heads, dim = query.shape
    groups = keys.shape[2]
    folded = query.view(sequences, width, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)
    folded = folded.flatten(2, 3)
    key_positions = torch.arange(keys.shape[1], device=query.device)
    visible = key_positions <= positions[:, :, None]
    if window is not None:
        visible &= key_positions > positions[:, :, None] - window
    visible = visible[:, None, None].expand(-1, 1, heads // groups, -1, -1).flatten(2, 3)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if softcap is None:
        attended = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=visible, scale=scale
        )
    else:
        attended = _capped_attention(folded, keys, values, visible, scale, softcap)
    unfolded = attended.view(sequences, groups, heads // groups, width, dim)
    return unfolded.permute(0, 3, 1, 2, 4).reshape(sequences, width, heads, dim)


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
