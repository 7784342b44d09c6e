"""n > 1: one element of each output for each sequence, and one end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.serving import wire
from tests.serving.harness import GREEDY, Request, Served, all_flags, ask_in_pieces

Serve = Callable[..., Served]

N = 3
SAMPLED = {"temperature": 8.0, "seed": 5, "max_tokens": 30, "ignore_eos": True, "n": N}


def joined(asked: Request, output: str) -> list[list[Any]]:
    """The elements of each sequence over all responses; bytes as text."""
    rows = [chunk[output].reshape(-1).tolist() for chunk in asked.chunks]
    assert all(len(row) == N for row in rows), "an element for each sequence in each response"
    decoded = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in rows]
    return [list(column) for column in zip(*decoded, strict=True)]


def token_ids(asked: Request) -> list[list[int]]:
    """The ids of each sequence, split by their counts."""
    found: list[list[int]] = [[] for _ in range(N)]
    for chunk in asked.chunks:
        ids = chunk[wire.TOKEN_IDS].reshape(-1).tolist()
        for index, count in enumerate(chunk[wire.NUM_OUTPUT_TOKENS].reshape(-1).tolist()):
            found[index] += ids[:count]
            del ids[:count]
        assert not ids
    return found


@pytest.fixture
def several(serve: Serve, scripted_folder: Path) -> Served:
    return serve(scripted_folder)


def test_server_answers_n_sequences_whole_as_in_pieces(several: Served) -> None:
    whole = several.ask("A", sampling={**SAMPLED, "logprobs": 1}, **all_flags())
    pieces = ask_in_pieces(several, "A", sampling={**SAMPLED, "logprobs": 1}, **all_flags())
    assert len(whole.chunks) == 1 < len(pieces.chunks)
    ids = token_ids(whole)
    assert ids == token_ids(pieces)
    assert [len(own) for own in ids] == [30] * N and len(set(map(tuple, ids))) == N
    texts = ["".join(own) for own in joined(pieces, wire.TEXT_OUTPUT)]
    assert ["A" + text for text in texts] == [t for (t,) in joined(whole, wire.TEXT_OUTPUT)]
    assert joined(whole, wire.FINISH_REASON) == [["length"]] * N
    for asked in (whole, pieces):
        for own, logprobs in zip(ids, joined(asked, wire.LOGPROBS), strict=True):
            entries = [entry for text in logprobs for entry in json.loads(text)]
            assert [int(next(iter(entry))) for entry in entries] == own
        sums = [values[-1] for values in joined(asked, wire.CUMULATIVE_LOGPROB)]
        assert len(set(sums)) == N
    assert several.stats.finished == {"length": 2}
    assert several.stats.tenants[""][1] == 2 * N * 30


def test_server_gives_the_first_of_n_what_one_alone_gets(several: Served) -> None:
    (first, *_) = token_ids(several.ask("A", sampling=SAMPLED, **all_flags()))
    alone = several.ask("A", sampling={**SAMPLED, "n": 1}, **all_flags())
    assert alone.token_ids == first


def test_server_ends_each_of_n_at_its_own_stop_string(several: Served) -> None:
    free = several.ask("A", sampling=SAMPLED, exclude_input_in_output=True, **all_flags())
    texts = [text for (text,) in joined(free, wire.TEXT_OUTPUT)]
    # A character that not all have at the same place, if they have it.
    places = {c: tuple(text.find(c) for text in texts) for c in "".join(texts) if c.isascii()}
    stop, found = max(places.items(), key=lambda place: len(set(place[1])))
    assert len(set(found)) > 1
    stopped = several.ask(
        "A", sampling={**SAMPLED, "stop": stop}, exclude_input_in_output=True, **all_flags()
    )
    cut = [text if at < 0 else text[:at] for text, at in zip(texts, found, strict=True)]
    assert [text for (text,) in joined(stopped, wire.TEXT_OUTPUT)] == cut
    reasons = [reason for (reason,) in joined(stopped, wire.FINISH_REASON)]
    assert reasons == ["length" if at < 0 else "stop" for at in found]


def test_server_keeps_the_finish_reason_of_a_sequence_that_has_ended(several: Served) -> None:
    free = several.ask("A", sampling=SAMPLED, **all_flags())
    ids = token_ids(free)
    # A token that ends the first sequence early, and no other one.
    token = next(i for i in ids[0][1:10] if all(i not in own for own in ids[1:]))
    asked = ask_in_pieces(
        several, "A", sampling={**SAMPLED, "stop_token_ids": [token]}, **all_flags()
    )
    first, *others = joined(asked, wire.FINISH_REASON)
    assert first == sorted(first, key=lambda reason: reason != "None") and first[-1] == "stop"
    assert [own[-1] for own in others] == ["length"] * (N - 1)


def test_server_refuses_more_sequences_than_run_at_once(several: Served) -> None:
    asked = several.ask("A", sampling={**GREEDY, "n": 33})
    assert asked.error == ("INVALID_ARG", "n: got 33; at most max_num_seqs = 32")


def test_server_ends_all_n_when_the_client_leaves(several: Served) -> None:
    asked = several.ask  # the harness checks that every block comes back
    assert asked("A", sampling={**SAMPLED, "deadline_ms": 1}).error is not None
    assert several.stats.finished == {"deadline": 1}
