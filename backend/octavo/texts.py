"""Files of text: documents, and the tokens that a checkpoint makes of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Document:
    """name: as "file:line" of where it begins. token_ids: without those that tokenizers add."""

    name: str
    token_ids: tuple[int, ...]


def read_texts(path: Path, *, by_paragraph: bool = True) -> list[tuple[str, str]]:
    """Each document's place ("file:line") and text, the empty ones left out. Raises ConfigError
    naming file and line.

    .jsonl: the "text" of each line. .txt: separated by form feeds or, if there are none, by blank
    lines; without `by_paragraph` it is one document then.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f"{path}: a text is .txt or .jsonl")
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: byte {content[exc.start]:#04x} is not UTF-8") from None
    found = _json_lines(path, text) if path.suffix == ".jsonl" else _plain(path, text, by_paragraph)
    texts = [(place, own) for place, own in found if own.strip()]
    if not texts:
        raise ConfigError(f"{path}: there is no text in it")
    return texts


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    # Not splitlines: JSON strings may hold separators that it knows, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f"{path}:{number}: no JSON ({exc})") from None
        own = value.get("text") if isinstance(value, dict) else None
        if not isinstance(own, str):
            raise ConfigError(f'{path}:{number}: an object with a string "text" is expected')
        try:
            own.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{path}:{number}: half of a surrogate pair in its text") from None
        yield f"{path.name}:{number}", own


def _plain(path: Path, text: str, by_paragraph: bool) -> Iterator[tuple[str, str]]:
    text = text.replace("\r\n", "\n")
    if "\f" in text or not by_paragraph:
        line = 1
        for part in text.split("\f"):
            yield f"{path.name}:{line + _leading_lines(part)}", part.strip("\n")
            line += part.count("\n")
        return
    begin, lines = 1, list[str]()
    for number, line_text in enumerate(text.split("\n"), 1):
        if line_text.strip():
            begin = begin if lines else number
            lines.append(line_text)
        elif lines:
            yield f"{path.name}:{begin}", "\n".join(lines)
            lines = []
    if lines:
        yield f"{path.name}:{begin}", "\n".join(lines)


def _leading_lines(text: str) -> int:
    return len(text) - len(text.lstrip("\n"))


class TextTokenizer:
    """A checkpoint folder's tokenizer.json, with the tokens that it puts before a text."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Raises ConfigError."""
        from tokenizers import Tokenizer

        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise ConfigError(f"{folder}: tokenizer.json is missing; save a fast tokenizer there")
        try:
            self._tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as exc:  # the library raises plain Exception
            raise ConfigError(f"{self.path}: {exc}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocab_size = vocab_size
        empty, other = (self._tokenizer.encode(text).ids for text in ("", "a"))
        self.prefix: tuple[int, ...] = tuple(_common_beginning(empty, other))

    def documents(self, texts: Sequence[tuple[str, str]]) -> list[Document]:
        """Raises ConfigError if the model has no embedding for a token."""
        found = []
        encoded = self._tokenizer.encode_batch(
            [text for _, text in texts], add_special_tokens=False
        )
        for (place, _), encoding in zip(texts, encoded, strict=True):
            highest = max((*encoding.ids, *self.prefix), default=0)
            if highest >= self._vocab_size:
                raise ConfigError(
                    f"{self.path}: {place} has token {highest}; config.json: vocab_size = "
                    f"{self._vocab_size}"
                )
            found.append(Document(place, tuple(encoding.ids)))
        return found

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text of those before it. A character that several tokens
        spell stands with its last."""
        found, shown = [], ""
        for end in range(1, len(token_ids) + 1):
            text = str(self._tokenizer.decode(list(token_ids[:end]), skip_special_tokens=False))
            if text.endswith("\ufffd") and end < len(token_ids):
                found.append("")
                continue
            found.append(text[len(shown) :])
            shown = text
        return found


def _common_beginning(a: Sequence[int], b: Sequence[int]) -> Sequence[int]:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return a[:count]
