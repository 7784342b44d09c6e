"""Text out of a stream of tokens: whole characters, no lost space, stop strings held back."""

from collections.abc import Callable

from octavo.serving.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# Tokens of the prompt that the first new one is decoded with; some tokenizers drop the leading
# space of whatever comes first.
_CONTEXT = 5
_LONGEST_CHARACTER = 4  # in bytes, and so in tokens
_MAX_WINDOW = 64  # in tokens; undecodable output can go on and on


class Detokenizer:
    """The texts of `push` and `flush`, joined, are the text of all tokens decoded together.

    A character that is spread over tokens comes with its last one: undecodable bytes show as
    U+FFFD while incomplete, so that is held until further tokens settle it. Each new token is
    decoded with the tokens of the last text given, never with a part of a character: of a run
    of byte tokens some tokenizers decode all or nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        for length in range(_CONTEXT, _CONTEXT + _LONGEST_CHARACTER):
            self._window = list(prompt_token_ids[-length:])
            self._given = self._decode(self._window)  # of the window's text
            if not self._given.startswith(_REPLACEMENT):
                break
        self._num_given = len(self._window)  # tokens of the window; the others are held

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes."""
        is_special = token_id in self._tokenizer.special_token_ids
        if is_special and self._skips:
            return ""
        whole = None if is_special else self._tokenizer.whole_text(token_id)
        if whole is not None and self._num_given == len(self._window):
            # Nothing is held, and nothing that may come needs this token for its context.
            self._window, self._num_given, self._given = [], 0, ""
            return whole
        self._window.append(token_id)
        text = self._decode(self._window)
        is_settled = not text.endswith(_REPLACEMENT)
        num_held = len(self._window) - self._num_given
        if not is_settled and num_held < _LONGEST_CHARACTER:
            return ""
        delta = self._new_part(text, _settled)
        start = self._num_given if delta else 0
        if is_settled:
            self._num_given = len(self._window)
        if len(self._window) > _MAX_WINDOW:
            start = len(self._window) - 2 * _CONTEXT
        del self._window[:start]
        self._num_given = max(self._num_given - start, 0)
        self._given = _settled(self._decode(self._window))
        return delta

    def flush(self) -> str:
        """What was held back. Nothing may follow."""
        return self._new_part(self._decode(self._window), str)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips)

    def _new_part(self, text: str, cut: Callable[[str], str]) -> str:
        """What the window's text adds to what was given, as far as `cut` leaves it."""
        text = cut(text)
        if text.startswith(self._given):
            return text[len(self._given) :]
        # Bytes that are no character have spoilt the characters before them.
        return cut(self._decode(self._window[self._num_given :]))


def _settled(text: str) -> str:
    """`text` without a last character that further bytes may still complete."""
    return text.removesuffix(_REPLACEMENT)


class StopStrings:
    """Passes text on until one of `stops` begins; a possible beginning is held back. `include`
    passes on the stop string that ends the text, too."""

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that no stop string can claim any more. With a match: what came before it."""
        if not self._stops or self.matched:
            return "" if self.matched else text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            at, stop = min(found)
            released, self._held = self._held[: at + self._include * len(stop)], ""
            return released
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        released, self._held = self._held, ""
        return released

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
