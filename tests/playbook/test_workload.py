"""What every stage is asked: the same in every process, with the lengths that it says."""

from statistics import mean

import pytest

from octavo.errors import ConfigError
from octavo.playbook.workload import WORKLOADS, Lengths

CHAT = WORKLOADS["chat"]


def test_a_request_depends_on_its_numbers_alone() -> None:
    assert CHAT.requests(3, 4, 20, 4096)[17] == CHAT.request(3, 4, 17, 4096)
    others = {CHAT.request(seed, users, 17, 4096) for seed in (3, 4) for users in (4, 8)}
    assert len(others) == 4


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_and_beginnings_are_the_workloads(name: str) -> None:
    workload = WORKLOADS[name]
    requests = workload.requests(0, 8, 400, 32_000)
    heads = {request.prompt[: workload.shared_tokens] for request in requests}
    assert len(heads) == max(workload.beginnings, 1)
    own = [len(request.prompt) - workload.shared_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    for lengths, drawn in ((workload.own, own), (workload.output, outputs)):
        assert lengths.shortest <= min(drawn) and max(drawn) <= lengths.longest
        # The cut of the longest takes some of the mean.
        assert 0.85 * lengths.mean < mean(drawn) < 1.1 * lengths.mean
        assert max(drawn) > 1.5 * lengths.mean, "static batches would have nothing to wait for"
    prompts = {request.prompt[workload.shared_tokens :] for request in requests}
    assert len(prompts) == 400
    assert all(300 <= token < 32_000 for request in requests[:9] for token in request.prompt)


def test_all_of_a_small_vocabulary_is_used() -> None:
    tokens = {token for each in CHAT.requests(0, 1, 20, 90) for token in each.prompt}
    assert tokens == set(range(90))


@pytest.mark.parametrize("context", [24, 100, 640, 1280, 5000])
def test_the_longest_request_fits(context: int) -> None:
    fitted = CHAT.fitted(context)
    assert fitted.longest_tokens <= context
    longest = max(
        len(request.prompt) + request.output_tokens for request in fitted.requests(0, 2, 300, 4096)
    )
    assert longest <= context
    if context >= CHAT.longest_tokens:
        assert fitted == CHAT


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--context = 3: the shortest requests of --workload"):
        CHAT.fitted(3)


def test_scaled_lengths_have_two_tokens_or_more() -> None:
    # TPOT is of the tokens behind the first.
    assert Lengths(100, 0.5, 10, 200).scaled(0.001) == Lengths(2, 0.5, 2, 2)
