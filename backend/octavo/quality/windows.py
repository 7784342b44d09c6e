"""Windows of a context over the documents that a candidate is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.texts import Document


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a document that is read at once: each token behind the first is predicted from
    those before it.

    document: its number. token_ids: what is read, and one more at its end that is only predicted
    given: how many at its beginning are not scored
    """

    document: int
    token_ids: tuple[int, ...]
    given: int

    @property
    def num_scored(self) -> int:
        return len(self.token_ids) - self.given


def cut_windows(
    documents: Sequence[Document], prefix: tuple[int, ...], context: int
) -> list[Window]:
    """Windows that read at most `context` tokens, document by document. Each begins with what the
    tokenizer puts before a text or, if that is nothing, with a token of the document; so each token
    is scored once, but for a document's first where nothing stands before it."""
    assert context > len(prefix)
    windows = []
    for number, document in enumerate(documents):
        ids = document.token_ids
        first = 0 if prefix else 1
        room = context - max(len(prefix), 1) + 1
        for begin in range(first, len(ids), room):
            head = prefix or (ids[begin - 1],)
            windows.append(Window(number, (*head, *ids[begin : begin + room]), len(head)))
    return windows
