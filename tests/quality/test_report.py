"""The page: everything is in it, and nothing of a text is markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.quality.texts import TINY, copy_of_tiny, gate, held_out

ATTACK = "<script>alert('x')</script> & \"quoted\" <b>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Its tags are balanced; what they hold is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.linked: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.linked += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    lines = [json.dumps({"text": f"{ATTACK} {text[:500]}"}) for text in held_out()[:21]]
    text = folder / "<i>.jsonl"
    text.write_text("\n".join(lines), encoding="utf-8")
    candidate = copy_of_tiny(folder / "m", rope_theta=100_000.0)
    record = gate(candidate, text, folder / "out")
    return (folder / "out" / record.report).read_text(encoding="utf-8")


def test_a_text_is_no_markup(page: str) -> None:
    parsed = Page(page)
    assert not parsed.tags & {"script", "i", "b"}
    assert "&lt;i&gt;.jsonl" in page


def test_it_needs_nothing_from_elsewhere(page: str) -> None:
    assert Page(page).linked == [] and "://" not in page.split("<body>")[0]


def test_what_it_shows(page: str) -> None:
    assert "<strong>FAIL</strong>" in page
    for figure in ("upper bound, 95 %", "mean KL divergence", "top-1 agreement"):
        assert figure in page
    circles = re.findall(r'class="document"', page)
    assert len(circles) == 21
    assert page.count('class="passage"') == 16  # eight, on two sides
    assert page.count('class="hash"') == 3


@pytest.mark.parametrize("text", ["a", "a b c", "the\fof"])
def test_tiny_texts_have_one_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    record = gate(TINY, tmp_path / "text.txt", tmp_path / "out", weight_format="int8")
    assert record.outcome.value in ("inconclusive", "no signal")
    Page((tmp_path / "out" / record.report).read_text(encoding="utf-8"))


def test_a_model_beside_itself_has_no_passages(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\f".join(held[:300] for held in held_out()[:20]), encoding="utf-8")
    record = gate(TINY, text, tmp_path / "out")
    own = (tmp_path / "out" / record.report).read_text(encoding="utf-8")
    Page(own)
    assert "None lost anything." in own and 'class="passage"' not in own
