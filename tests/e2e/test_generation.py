"""What a client gets, in both forms, over gRPC and HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.e2e.streams import Stream, Value, infer_request
from tests.e2e.target import MODEL, Target, prompt_ids

PROMPT = "The list of options"
UNICODE_PROMPTS = [
    "Emoji: 🦙🚀👩‍👩‍👧‍👦 and flags 🇩🇪",
    "漢字とひらがな、한국어, العربية",
    "combining e\u0301, surrogate-plane 𝔘𝔫𝔦, zero\u200bwidth",
    "tabs\tand\r\nlines\n\n  and trailing spaces  ",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def events(target: Target, **body: Any) -> Iterator[dict[str, Any]]:
    response = target.post("generate_stream", {"stream": True, **body})
    assert response.headers["content-type"].startswith("text/event-stream")
    for line in response.text.splitlines():
        if line:
            yield json.loads(line.removeprefix("data: "))


def greedy_json(max_tokens: int, **more: Any) -> str:
    return json.dumps({"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens, **more})


def test_every_way_gives_the_same_text(target: Target) -> None:
    streamed = target.generate(PROMPT, max_tokens=40)
    assert len(streamed.chunks) > 1 and len(streamed.token_ids) == 40
    whole = target.generate(
        PROMPT, max_tokens=40, stream=False, inputs={"exclude_input_in_output": True}
    )
    assert whole.text == streamed.text and whole.token_ids == streamed.token_ids
    body = {"text_input": PROMPT, "sampling_parameters": greedy_json(40)}
    unary = target.post("generate", {**body, "exclude_input_in_output": True}).json()
    assert unary["text_output"] == streamed.text
    deltas = [event["text_output"] for event in events(target, **body)]
    assert len(deltas) > 1 and "".join(deltas) == streamed.text


def test_both_forms_give_the_same_text(flat: Target, batched: Target) -> None:
    texts = {each.generate(PROMPT, max_tokens=60).text for each in (flat, batched)}
    assert len(texts) == 1


def test_prompt_is_prepended_unless_it_is_excluded(target: Target) -> None:
    default = target.generate(PROMPT, max_tokens=5, stream=False)
    without = target.generate(
        PROMPT, max_tokens=5, stream=False, inputs={"exclude_input_in_output": True}
    )
    assert without.text and default.text == PROMPT + without.text
    unary = target.post(
        "generate", {"text_input": PROMPT, "sampling_parameters": greedy_json(5)}
    ).json()
    assert unary["text_output"] == default.text


def test_stream_ends_with_one_final_response_and_its_reason(target: Target) -> None:
    answer = target.generate(PROMPT, max_tokens=12)
    assert answer.num_finals == 1 and answer.chunks[-1].is_final
    reasons = [chunk.outputs["finish_reason"] for chunk in answer.chunks]
    assert reasons == ["None"] * (len(reasons) - 1) + ["length"]
    counts = [chunk.outputs["num_output_tokens"][0] for chunk in answer.chunks]
    assert counts == [len(chunk.outputs["token_ids"]) for chunk in answer.chunks]
    assert sum(counts) == 12


def test_default_is_16_tokens(target: Target) -> None:
    answer = target.send(PROMPT, inputs={"sampling_parameters": '{"ignore_eos": true}'}).result()
    assert len(answer.token_ids) == 16 and answer.finish_reason == "length"


def test_only_requested_outputs_are_sent(target: Target) -> None:
    inputs: dict[str, Value] = {"text_input": PROMPT, "stream": True}
    bare = infer_request(inputs, batched=target.batched)
    answer = Stream(target.settings.grpc_url, bare).result()
    assert all(set(chunk.outputs) == {"text_output"} for chunk in answer.chunks)
    inputs["return_finish_reason"] = True
    not_wanted = infer_request(inputs, batched=target.batched, outputs=["text_output"])
    answer = Stream(target.settings.grpc_url, not_wanted).result()
    assert all(set(chunk.outputs) == {"text_output"} for chunk in answer.chunks)


def test_request_parameters_stand_in_for_the_json(target: Target) -> None:
    expected = target.generate(PROMPT, max_tokens=7).text
    request = infer_request(
        {"text_input": PROMPT, "stream": True},
        batched=target.batched,
        parameters={"max_tokens": 7, "temperature": 0.0, "ignore_eos": True},
    )
    assert Stream(target.settings.grpc_url, request).result().text == expected
    body = {"text_input": PROMPT, "max_tokens": 7, "temperature": 0, "ignore_eos": True}
    unary = target.post("generate", {**body, "exclude_input_in_output": True}).json()
    assert unary["text_output"] == expected


def test_numbers_may_come_as_text(target: Target) -> None:
    text = '{"temperature": "0", "top_p": "1", "max_tokens": "9", "ignore_eos": "true"}'
    answer = target.send(PROMPT, inputs={"sampling_parameters": text}).result()
    assert answer.token_ids == target.generate(PROMPT, max_tokens=9).token_ids


@pytest.mark.parametrize("text", UNICODE_PROMPTS)
def test_unicode_prompt_makes_its_round_trip(
    target: Target, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    options = {"max_tokens": 8, "stream": False, "inputs": {"return_num_input_tokens": True}}
    answer = target.generate(text, **options)
    assert answer.chunks[0].outputs["num_input_tokens"] == [len(ids)]
    assert answer.text.startswith(text)
    by_ids = target.generate(ids, **options)
    assert by_ids.text == answer.text and by_ids.token_ids == answer.token_ids
    unary = target.post(
        "generate", {"text_input": text, "sampling_parameters": greedy_json(8)}
    ).json()
    assert unary["text_output"] == answer.text


def test_streamed_text_is_that_of_all_tokens_when_they_hold_odd_bytes(
    target: Target, tokenizer: Tokenizer
) -> None:
    # At this temperature any token may come, and single bytes that are no character among them.
    texts = []
    for seed in range(3):
        answer = target.generate(PROMPT, max_tokens=150, temperature=20, seed=seed)
        assert answer.text == tokenizer.decode(answer.token_ids)
        texts.append(answer.text)
    assert "\ufffd" in "".join(texts)


def test_stop_string_ends_the_text_before_it(target: Target) -> None:
    text = target.generate(PROMPT, max_tokens=60).text
    stop = text[20:29]  # any piece, whatever tokens it is of
    for stream in (True, False):
        answer = target.generate(
            PROMPT,
            max_tokens=60,
            stop=[stop, "never to be seen"],
            stream=stream,
            inputs={"exclude_input_in_output": True},
        )
        assert answer.text == text[: text.index(stop)]
        assert answer.finish_reason == "stop" and len(answer.token_ids) < 60


def test_stop_string_that_never_comes_costs_no_text(target: Target) -> None:
    text = target.generate(PROMPT, max_tokens=40).text
    # Its beginning comes again and again, so that text is held back.
    answer = target.generate(PROMPT, max_tokens=40, stop=text[-3:] + "\0")
    assert answer.text == text and answer.finish_reason == "length"


def test_stop_token_ends_the_text(target: Target) -> None:
    whole = target.generate(PROMPT, max_tokens=20)
    stop = whole.token_ids[10]
    at = whole.token_ids.index(stop)
    answer = target.generate(PROMPT, max_tokens=20, stop_token_ids=[stop])
    assert answer.token_ids == whole.token_ids[: at + 1] and answer.finish_reason == "stop"
    assert whole.text.startswith(answer.text)


def test_seed_makes_sampling_repeatable(target: Target) -> None:
    def sample(**params: Any) -> list[int]:
        return target.generate(PROMPT, max_tokens=24, temperature=1.0, **params).token_ids

    assert sample(seed=7) == sample(seed=7)
    assert len({tuple(sample(seed=seed)) for seed in range(6)}) == 6
    assert len({tuple(sample()) for _ in range(4)}) == 4


def test_seeded_sample_does_not_depend_on_its_neighbours(target: Target) -> None:
    alone = target.generate(PROMPT, max_tokens=40, temperature=1.0, seed=3).token_ids
    others = [target.send(prompt_ids(30, seed), max_tokens=80) for seed in range(5)]
    others[0].wait_for_first()
    assert target.generate(PROMPT, max_tokens=40, temperature=1.0, seed=3).token_ids == alone
    for stream in others:
        stream.result()


def test_top_k_1_is_greedy(target: Target) -> None:
    greedy = target.generate(PROMPT, max_tokens=16).token_ids
    assert target.generate(PROMPT, max_tokens=16, temperature=5, top_k=1).token_ids == greedy


def test_logprobs_name_the_sampled_token_and_the_likeliest(target: Target) -> None:
    flags: dict[str, Value] = {"return_logprobs": True, "return_cumulative_logprob": True}
    answer = target.generate(PROMPT, max_tokens=10, logprobs=3, inputs=flags)
    entries = [e for chunk in answer.chunks for e in json.loads(chunk.outputs["logprobs"])]
    assert len(entries) == 10
    total = 0.0
    for token_id, entry in zip(answer.token_ids, entries, strict=True):
        own = entry[str(token_id)]
        assert len(entry) == 3 and own["rank"] == 1
        assert own["logprob"] == max(each["logprob"] for each in entry.values()) <= 0
        assert sorted(each["rank"] for each in entry.values()) == [1, 2, 3]
        total += own["logprob"]
    assert answer.chunks[-1].outputs["cumulative_logprob"] == [pytest.approx(total, abs=1e-4)]
    decoded = [e[str(i)]["decoded_token"] for i, e in zip(answer.token_ids, entries, strict=True)]
    assert "".join(decoded) == answer.text


def test_chat_messages_are_rendered_by_the_template(target: Target) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🦙"}]
    answer = target.send(None, max_tokens=12, inputs={"messages": json.dumps(messages)}).result()
    assert len(answer.token_ids) == 12
    other = [messages[0], {"role": "user", "content": "Hi"}]
    shorter = target.send(
        None,
        max_tokens=1,
        inputs={"messages": json.dumps(other), "return_num_input_tokens": True},
    ).result()
    longer = target.send(
        None,
        max_tokens=1,
        inputs={"messages": json.dumps(messages), "return_num_input_tokens": True},
    ).result()
    num_tokens = [a.chunks[0].outputs["num_input_tokens"][0] for a in (shorter, longer)]
    assert 5 < num_tokens[0] < num_tokens[1]


def test_prompt_up_to_the_context_is_served(target: Target) -> None:
    answer = target.generate(prompt_ids(2047), max_tokens=1)
    assert len(answer.token_ids) == 1 and answer.finish_reason == "length"
    rest = target.generate(prompt_ids(2000), max_tokens=48)
    assert len(rest.token_ids) == 48
