"""Text to token ids and back, and the model's chat template."""

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.decoders
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import ConfigError, InvalidRequestError


class Tokenizer:
    """A Hugging Face folder's tokenizer.json, with the chat template beside it."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder has no readable tokenizer."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ConfigError(f"{folder}: tokenizer.json is missing; save a fast tokenizer there")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises plain Exception
            raise ConfigError(f"{path}: {exc}") from None
        # Settings of training; here they would cut or pad prompts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = _read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        self._chat_source = (
            template.read_text(encoding="utf-8")
            if template.exists()
            else self._config.get("chat_template")
        )
        self._is_byte_level = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self._whole_texts: dict[int, str | None] = {}
        # Anchors single tokens: decoded alone, some tokenizers drop a leading space.
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_length = len(self.decode(self._anchor))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def decode_single(self, token_id: int) -> str:
        """The token's own text, special tokens and a leading space included."""
        both = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        return both[self._anchor_length :]

    def bad_words_token_ids(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The token ids that spell each word, at the beginning of a text and after a space."""
        spellings: dict[tuple[int, ...], None] = {}
        for word in words:
            bare, spaced = (
                tuple(self.encode(prefix + word.lstrip(), add_special_tokens=False))
                for prefix in ("", " ")
            )
            spellings[bare] = None
            if spaced[-len(bare) :] != bare:  # else whatever ends in `spaced` ends in `bare`
                spellings[spaced] = None
        spellings.pop((), None)  # of a word of spaces alone
        return tuple(spellings)

    def whole_text(self, token_id: int) -> str | None:
        """The token's text where that is the same in any context, else None: byte-level
        tokens that are whole characters. Remembered, since decoding is slow beside it."""
        if not self._is_byte_level:
            return None
        if token_id not in self._whole_texts:
            text = self.decode([token_id])
            self._whole_texts[token_id] = None if "\ufffd" in text else text
        return self._whole_texts[token_id]

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that `decode` skips."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes of text than this."""
        return max(len(token.encode()) for token in self._tokenizer.get_vocab())

    def render_chat(self, messages: list[dict[str, Any]]) -> str:
        """The prompt that the model's template makes of `messages`, ready for the answer.

        Raises InvalidRequestError if there is no template or it refuses them.
        """
        shown = f"{len(messages)} messages"
        if self._chat_template is None:
            raise InvalidRequestError("messages", shown, "the model has no chat template")
        try:
            return str(
                self._chat_template.render(
                    messages=messages, add_generation_prompt=True, **self._special_tokens()
                )
            )
        except (TemplateError, SecurityError, TypeError, KeyError) as exc:
            limit = f"the chat template refuses: {exc}"
            raise InvalidRequestError("messages", shown, limit) from None

    @cached_property
    def _chat_template(self) -> Any:
        if not isinstance(self._chat_source, str):
            return None
        # Templates come with checkpoints, so they run sandboxed.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        return environment.from_string(self._chat_source)

    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = self._config.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                tokens[name] = value
        return tokens


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object is expected")
    return content
