"""How a text becomes documents, tokens and windows."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.quality.windows import cut_windows
from octavo.texts import Document, TextTokenizer, read_texts
from tests.quality.texts import TINY


def texts_of(file: Path, content: str | bytes) -> list[tuple[str, str]]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_texts(file)


def test_blank_lines_separate_documents(tmp_path: Path) -> None:
    found = texts_of(tmp_path / "a.txt", "\none\ntwo\n\n \t\n\nthree\r\nfour\n")
    assert found == [("a.txt:2", "one\ntwo"), ("a.txt:7", "three\nfour")]


def test_form_feeds_separate_documents_with_blank_lines_in_them(tmp_path: Path) -> None:
    found = texts_of(tmp_path / "a.txt", "one\n\ntwo\n\f\nthree\n\n\f\f four")
    assert found == [("a.txt:1", "one\n\ntwo"), ("a.txt:5", "three"), ("a.txt:7", " four")]


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [{"text": "a\u2028b", "id": 3}, {"text": " "}, {"text": "c"}]
    content = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    found = texts_of(tmp_path / "a.jsonl", content)
    assert found == [("a.jsonl:1", "a\u2028b"), ("a.jsonl:5", "c")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"good\nb\xffd", r"a\.txt:2: byte 0xff is not UTF-8"),
        ("a.txt", " \n\n", r"a\.txt: there is no text in it"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"a\.jsonl:2: no JSON"),
        ("a.jsonl", '{"text": "a"}\n\n{"txt": "a"}', r'a\.jsonl:3: .*a string "text"'),
        ("a.jsonl", '["a"]', r'a\.jsonl:1: .*a string "text"'),
        ("a.jsonl", '{"text": 1}', r'a\.jsonl:1: .*a string "text"'),
        ("a.jsonl", '{"text": "\\ud800"}', r"a\.jsonl:1: half of a surrogate"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: no JSON"),
        ("a.md", "text", r"a\.md: a text is \.txt or \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        texts_of(tmp_path / name, content)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_texts(tmp_path / "a.txt")


def test_tokens_without_those_that_are_added() -> None:
    tokenizer = TextTokenizer(TINY, 4096)
    assert tokenizer.prefix == (0,)
    (document,) = tokenizer.documents([("a:1", "hello there")])
    assert document.token_ids and 0 not in document.token_ids


def test_a_token_without_an_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a:1 has token \d+; config.json: vocab_size = 300"):
        TextTokenizer(TINY, 300).documents([("a:1", "documentation of the function")])


def test_pieces_are_the_text() -> None:
    tokenizer = TextTokenizer(TINY, 4096)
    text = "A naïve café, 漢字 and 🎈 <b>&amp;"
    (document,) = tokenizer.documents([("a:1", text)])
    pieces = tokenizer.pieces(document.token_ids)
    assert "".join(pieces) == text and len(pieces) == len(document.token_ids)


def test_a_tokenizer_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        TextTokenizer(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: "):
        TextTokenizer(tmp_path, 10)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.sampled_from([(), (7,), (7, 8)]),
    st.integers(4, 20),
)
def test_each_token_is_scored_once(
    lengths: list[int], prefix: tuple[int, ...], context: int
) -> None:
    """But for a document's first where nothing stands before it; in windows of the context."""
    documents = [Document(str(n), tuple(range(100, 100 + n))) for n in lengths]
    windows = cut_windows(documents, prefix, context)
    scored: list[list[int]] = [[] for _ in documents]
    for window in windows:
        assert len(window.token_ids) - 1 <= context and window.num_scored > 0
        assert window.given == max(len(prefix), 1)
        if prefix:
            assert window.token_ids[: window.given] == prefix
        else:  # what stood before it in the document
            assert window.token_ids[0] == window.token_ids[1] - 1
        scored[window.document] += window.token_ids[window.given :]
    for document, own in zip(documents, scored, strict=True):
        assert tuple(own) == document.token_ids[0 if prefix else 1 :]
