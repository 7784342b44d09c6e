"""Deltas, joined, are the text; for both families of tokenizers, whatever the tokens are."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, trainers

from octavo.serving.detokenizer import Detokenizer
from octavo.serving.tokenizer import Tokenizer
from tests.serving.checkpoints import byte_level_tokenizer

REPLACEMENT = "\ufffd"
# Spaces in a row, accents as one and as two code points, CJK, emoji that are several code points.
TEXTS = st.text(st.sampled_from("ab  éè\u0301日本語한ไ😀👩\u200d💻🏽\n▁\x00")) | st.text().map(
    lambda text: text.replace(REPLACEMENT, "")
)
PROMPTS = st.sampled_from(["", "a", "note: ", "日本語日本語", "ok 😀😀", "x\n", "é"])


def byte_fallback_tokenizer(*, strips: bool) -> RawTokenizer:
    """As SentencePiece models come: words begin with ▁, unknown characters are spelled in
    bytes, a run of which is decoded as a whole. `strips`: the first space is not shown."""
    words = ["▁the", "▁note", "▁a", "b", "é", "日本", "▁ok", "▁▁", ":"]
    trained = RawTokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    trained.train_from_iterator([word for word in words for _ in range(9)], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = RawTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    prepend = [normalizers.Prepend("▁")] if strips else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


KINDS = {
    "byte_level": byte_level_tokenizer(),
    "byte_fallback": byte_fallback_tokenizer(strips=False),
    "byte_fallback_strip": byte_fallback_tokenizer(strips=True),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return _saved(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _saved("byte_level", tmp_path_factory)


@pytest.fixture(scope="module", params=["byte_fallback", "byte_fallback_strip"])
def byte_fallback(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return _saved(request.param, tmp_path_factory)


def _saved(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp(kind)
    KINDS[kind].save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def deltas(tokenizer: Tokenizer, token_ids: list[int], prompt: list[int]) -> Iterator[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    for token_id in token_ids:
        yield detokenizer.push(token_id)
    yield detokenizer.flush()


@given(text=TEXTS, prompt=PROMPTS)
def test_detokenizer_joins_to_the_text(tokenizer: Tokenizer, text: str, prompt: str) -> None:
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, before = tokenizer.decode([*prompt_ids, *ids]), tokenizer.decode(prompt_ids)
    assert whole.startswith(before)
    parts = list(deltas(tokenizer, ids, prompt_ids))
    assert REPLACEMENT not in whole
    assert "".join(parts) == whole[len(before) :]


@given(data=st.data())
def test_detokenizer_joins_to_the_text_of_any_tokens_when_byte_level(
    byte_level: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, 511), max_size=80))
    parts = list(deltas(byte_level, ids, []))
    assert "".join(parts) == byte_level.decode(ids)


@given(data=st.data())
def test_detokenizer_keeps_other_text_whole_when_bytes_are_no_characters(
    byte_fallback: Tokenizer, data: st.DataObject
) -> None:
    # The bytes of no ASCII character, so that all ASCII comes from whole tokens.
    odd_bytes, others = st.integers(3 + 0x80, 3 + 0xFF), st.integers(259, 290)
    ids = data.draw(st.lists(odd_bytes | others, max_size=60))
    parts = list(deltas(byte_fallback, ids, []))
    assert _ascii("".join(parts)) == _ascii(byte_fallback.decode(ids))


def test_detokenizer_settles_each_character_of_a_long_run_of_bytes(
    byte_fallback: Tokenizer,
) -> None:
    ids = byte_fallback.encode("한" * 20, add_special_tokens=False)
    parts = list(deltas(byte_fallback, ids, []))
    assert len(ids) >= 60
    assert [part for part in parts if part.strip()] == ["한"] * 20


def test_detokenizer_shows_only_the_cut_character_as_undecodable(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a한한", add_special_tokens=False)
    text = "".join(deltas(tokenizer, ids[:-1], []))
    assert text.lstrip().rstrip(REPLACEMENT) == "a한"
    assert text.endswith(REPLACEMENT)


def test_detokenizer_shows_no_special_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab 한", add_special_tokens=False)
    between = [part for token_id in ids for part in (2, 2, token_id)]
    assert list(deltas(tokenizer, between, []))[-1] == ""
    assert "".join(deltas(tokenizer, between, [])) == tokenizer.decode(ids)


def test_tokenizer_shows_single_tokens_with_their_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" the note", add_special_tokens=False)
    singles = [tokenizer.decode_single(token_id) for token_id in ids]
    assert "".join(singles).endswith(" the note")
    assert all(singles)


def _ascii(text: str) -> str:
    return "".join(character for character in text if character.isascii())
