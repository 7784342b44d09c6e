"""Greedy text through the server is that of transformers.generate, in fp32."""

from __future__ import annotations

import json
from collections import deque

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.e2e.streams import Answer, Stream
from tests.e2e.target import MODEL, Target

NUM_PROMPTS = 50
NUM_TOKENS = 48
NUM_CONCURRENT = 8


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Pieces of held-out documents, of 12 characters to about 600 tokens."""
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    pieces = []
    for i in range(NUM_PROMPTS):
        text = texts[i % len(texts)]
        length = 12 + i * i  # mostly short, up to 2,413 characters
        begin = (i // len(texts)) * 1000
        pieces.append(text[begin : begin + length])
    assert len(set(pieces)) == NUM_PROMPTS
    return pieces


@pytest.fixture(scope="module")
def expected(prompts: list[str]) -> list[tuple[list[int], list[int], str]]:
    """For each prompt: its tokens, the new tokens, the new text."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    results = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                max_length=None,
            )
        length = inputs["input_ids"].shape[1]
        new = output[0, length:].tolist()
        results.append((output[0, :length].tolist(), new, tokenizer.decode(new, True)))
    return results


def test_greedy_text_equals_that_of_transformers(
    target: Target, prompts: list[str], expected: list[tuple[list[int], list[int], str]]
) -> None:
    def send(prompt: str) -> Stream:
        return target.send(
            prompt,
            max_tokens=NUM_TOKENS,
            ignore_eos=False,
            inputs={"return_num_input_tokens": True},
        )

    answers: list[Answer] = []
    under_way: deque[Stream] = deque()
    for prompt in prompts:
        if len(under_way) == NUM_CONCURRENT:
            answers.append(under_way.popleft().result())
        under_way.append(send(prompt))
    answers += [stream.result() for stream in under_way]
    lengths = [len(prompt_ids) for prompt_ids, _, _ in expected]
    assert min(lengths) < 10 and max(lengths) > 500
    for answer, (prompt_ids, new, text) in zip(answers, expected, strict=True):
        assert answer.chunks[0].outputs["num_input_tokens"] == [len(prompt_ids)]
        assert answer.token_ids == new
        assert answer.text == text
