"""Text out of a stream of tokens: whole characters, no lost space, stop strings held back."""

from octavo.serving.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# Tokens of context that a token is decoded with; some tokenizers drop the leading space of
# whatever comes first.
_CONTEXT = 5


class Detokenizer:
    """The texts of `push` and `flush`, joined, are the text of all tokens decoded together.

    A character that is spread over tokens comes with its last one. Undecodable bytes show as
    U+FFFD while incomplete, so a last U+FFFD is held until the next token settles it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_token_ids[-_CONTEXT:])
        self._given = tokenizer.decode(self._window)  # of the window's text

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        delta = _settled(text)[len(self._given) :]
        self._given += delta
        is_settled = not text.endswith(_REPLACEMENT)
        # Undecodable output can go on and on; the window is cut in the end all the same.
        if len(self._window) > (2 if is_settled else 12) * _CONTEXT:
            self._window = self._window[-_CONTEXT:]
            self._given = _settled(self._tokenizer.decode(self._window))
        return delta

    def flush(self) -> str:
        """What was held back."""
        text = self._tokenizer.decode(self._window)
        delta, self._given = text[len(self._given) :], text
        return delta


def _settled(text: str) -> str:
    """`text` without a last character that further bytes may still complete."""
    return text[:-1] if text.endswith(_REPLACEMENT) else text


class StopStrings:
    """Passes text on until one of `stops` begins; a possible beginning is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that no stop string can claim any more. After a match: what came before."""
        if not self._stops or self.matched:
            return "" if self.matched else text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            released, self._held = self._held[: min(found)], ""
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
