"""The GPU's penalties: a state that follows the tokens, and what it does to logits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.gpu import penalties
from sampled_rows import normal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARAMS = [
    # repetition, frequency, presence
    (1.7, 0.0, 0.0), (0.5, 0.4, -1.0), (1.0, -2.0, 2.0), (1.0, 0.0, 0.5), (1.3, 0.1, 0.2),
]  # fmt: skip


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def history_of(prompts: list[list[int]], outputs: list[list[int]], vocab: int) -> Tensor:
    history = torch.zeros(len(prompts), vocab, dtype=torch.int32, device=DEVICE)
    for slot, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        penalties.mark_prompt(history, ids(*[slot] * len(prompt)), ids(*prompt))
        penalties.count_tokens(history, ids(*[slot] * len(output)), ids(*output))
    return history


def tokens_of(vocab: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and output of a slot each, with some that come several times and some in both."""
    generator = np.random.default_rng(vocab)
    near = min(vocab, 40)
    prompts = [generator.integers(0, near, 30).tolist() for _ in PARAMS]
    outputs = [generator.integers(0, near, 20).tolist() for _ in PARAMS]
    outputs[0], prompts[1] = [], []
    prompts[2].append(vocab - 1)
    return prompts, outputs


def expected(logits: Tensor, prompt: list[int], output: list[int], params: tuple[float, ...]):
    seen = sorted({*prompt, *output})
    own = logits.clone()
    counts = torch.tensor([output.count(token) for token in seen])
    reference.penalize(own, torch.tensor(seen), counts, *params)
    return own


def penalize(logits: Tensor, history: Tensor, slots: Tensor, params: list[tuple[float, ...]]):
    columns = torch.tensor(params, device=DEVICE).T.contiguous()
    penalties.penalize_rows(logits, history, slots, *columns)


@pytest.mark.parametrize("vocab", [1, 7, 1000, 4099])
def test_rows_are_penalized_as_by_the_reference(vocab: int) -> None:
    prompts, outputs = tokens_of(vocab)
    wide = normal(len(PARAMS), vocab + 5)
    wide[3, 2 : vocab + 2 : 3] = -math.inf
    order = [3, 1, 4, 0, 2]  # of the slots
    logits = wide.clone().to(DEVICE)
    penalize(
        logits[:, 2 : vocab + 2], history_of(prompts, outputs, vocab), ids(*order),
        [PARAMS[slot] for slot in order],
    )  # fmt: skip
    for row, slot in enumerate(order):
        wide[row, 2 : vocab + 2] = expected(
            wide[row, 2 : vocab + 2], prompts[slot], outputs[slot], PARAMS[slot]
        )
    torch.testing.assert_close(logits.cpu(), wide, rtol=1e-6, atol=1e-6)


def test_a_row_alone_is_penalized_as_in_a_batch() -> None:
    prompts, outputs = tokens_of(300)
    history, logits = history_of(prompts, outputs, 300), normal(5, 300).to(DEVICE)
    together = logits.clone()
    penalize(together, history, ids(0, 1, 2, 3, 4), PARAMS)
    for row in range(5):
        alone = logits[[row]]
        penalize(alone, history, ids(row), [PARAMS[row]])
        assert torch.equal(alone[0], together[row]) and not torch.equal(alone[0], logits[row])


def test_neutral_rows_and_those_without_a_slot_stay() -> None:
    history = torch.full((2, 50), 7, dtype=torch.int32, device=DEVICE)
    logits = normal(5, 50).to(DEVICE)
    logits[0, 3] = math.nan
    before = logits.clone()
    strong = (1.5, 1.0, 1.0)
    penalize(logits, history, ids(0, -1, 2, 1, 2**40), [(1.0, 0.0, 0.0), *[strong] * 4])
    assert torch.equal(logits[[1, 2, 4]], before[[1, 2, 4]])
    assert logits[0].isnan().tolist() == before[0].isnan().tolist()
    assert (logits[3] != before[3]).all()


def test_the_state_follows_the_tokens() -> None:
    vocab = 60
    history = history_of([[5, 5, 9], [0], []], [[], [], []], vocab)
    steps = [[9, 59, 2], [9, 0, 2], [5, 59, 2]]
    for tokens in steps:
        penalties.count_tokens(history, ids(0, 1, 2), ids(*tokens))
    at_once = history_of([[5, 9], [0], []], [[9, 9, 5], [59, 0, 59], [2, 2, 2]], vocab)
    assert torch.equal(history, at_once)
    assert history[0, 9] == 5 and history[0, 5] == 3 and history[2, 2] == 6
    # A step of several tokens for a sequence, some of them equal, and a prompt that comes again.
    penalties.count_tokens(history, ids(0, 0, 0), ids(9, 9, 1))
    penalties.mark_prompt(history, ids(0), ids(9))
    assert history[0, 9] == 9 and history[0, 1] == 2


def test_tokens_and_slots_outside_change_nothing() -> None:
    history = torch.zeros(5, 10, dtype=torch.int32, device=DEVICE)
    slots, tokens = ids(-1, 3, 1, 2, 1, -(2**62)), ids(4, 4, -1, 10, 2**40, 2**62)
    penalties.count_tokens(history[1:4], slots, tokens)
    penalties.mark_prompt(history[1:4], slots, tokens)
    assert not history.any()
    penalties.count_tokens(history, ids(), ids())


def test_more_tokens_than_a_program_takes() -> None:
    history = torch.zeros(2, 400, dtype=torch.int32, device=DEVICE)
    every = torch.arange(400, device=DEVICE)
    penalties.mark_prompt(history, torch.ones_like(every), every)
    assert (history[1] == 1).all() and not history[0].any()
