"""The training text: prose of permissively licensed documentation packages of Debian 12.

`build_corpus` fetches the packages (`apt-get download`, unpacked without root, nothing installed),
extracts the main content of every HTML page, drops what is not prose and what was said before, and
splits off whole held-out documents whose near-duplicates it removes from the training side.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import lxml.html
from inscriptis import Inscriptis
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from sources import SOURCES, Source

SKIP_ALWAYS = re.compile(
    r"(genindex|modindex|/search|/_modules/|/_sources/|/_static/|/print\.html|/toc\.html|sitemap"
    r"|copyright|licen[cs]e|bookindex|/contents\.html|/404\.html|/releasenotes/|authors)",
    re.IGNORECASE,
)
MAIN_CONTENT = (
    "//main",
    "//*[@role='main']",
    "//div[@id='apicontent']",
    "//div[@id='page-content']",
    "//div[contains(concat(' ', @class, ' '), ' body ')]",
    "//body",
)
NOT_PROSE = (
    "//script|//style|//nav|//table|//footer|//svg|//form|//iframe|//noscript|//button|//math"
    "|//a[contains(@class,'headerlink') or contains(@class,'toc-backref') or @class='mark']"
    "|//*[contains(@class,'navheader') or contains(@class,'navfooter')"
    " or contains(@class,'toctree') or contains(@class,'related')"
    " or contains(@class,'sphinxsidebar') or @class='contents'"
    " or contains(@class,'contents topic') or @class='toc' or @class='nosearch'"
    " or contains(@class,'nav-') or contains(@class,'math') or contains(@class,'linenos')"
    " or contains(@class,'srclink') or @id='toc' or @id='TOC' or @class='up']"
)
STOPWORDS = frozenset(
    {"the", "of", "and", "to", "a", "in", "is", "that", "for", "it", "as", "with", "be", "this"}
    | {"are", "on", "by", "or", "an", "if", "can", "you", "not", "from"}
)
MIN_DOC_CHARS, MAX_PRE_CHARS, MAX_PACKAGE_CHARS = 600, 1200, 3_000_000
SHINGLE_WORDS = 8


@dataclass(slots=True)
class Document:
    """One page: `id` is package and path, `text` Markdown-like with `#` headings."""

    id: str
    package: str
    title: str
    text: str


def extract_page(html: bytes) -> tuple[str, str]:
    """Title and text of one page's main content; empty when there is none."""
    tree = lxml.html.document_fromstring(html, parser=lxml.html.HTMLParser(encoding="utf-8"))
    nodes: list[lxml.html.HtmlElement] = next(
        (found for xpath in MAIN_CONTENT if (found := tree.xpath(xpath))), []
    )
    if not nodes:
        return "", ""
    main = nodes[0]
    for node in main.xpath("." + NOT_PROSE.replace("|//", "|.//")):
        if node is not main and node.getparent() is not None:
            node.drop_tree()
    for pre in main.xpath(".//pre"):
        if len(pre.text_content()) > MAX_PRE_CHARS and pre.getparent() is not None:
            pre.drop_tree()
    title = ""
    for heading in main.xpath(".//h1|.//h2|.//h3|.//h4"):
        words = re.sub(r"^[\d.\s]*", "", " ".join(heading.text_content().split())).rstrip("¶#")
        title = title or words
        level, tail = int(heading.tag[1]), heading.tail
        heading.clear()
        heading.tail = tail
        heading.text = f"{'#' * level} {words}" if words else ""
    css = dict(CSS_PROFILES["strict"])
    return title, Inscriptis(main, ParserConfig(css=css)).get_text()


def tidy(text: str) -> str:
    """NFKC, no control characters, at most one blank line, no trailing blanks."""
    text = unicodedata.normalize("NFKC", text).replace("\t", "    ").replace("¶", "")
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")
    lines = [line.rstrip() for line in text.split("\n")]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return re.sub(r"(?m)^ {2}(?=\S)", "", text).strip()


def is_prose(text: str) -> bool:
    """English sentences rather than listings: stop words and letters in their usual shares."""
    words = re.findall(r"[a-z]+", text.lower())
    if len(text) < MIN_DOC_CHARS or not words:
        return False
    stop_share = sum(w in STOPWORDS for w in words) / len(words)
    plain = sum(c.isascii() and (c.isalpha() or c in " \n.,") for c in text) / len(text)
    return stop_share > 0.20 and plain > 0.82


def fetch(package: str, work: Path) -> Path:
    """Download and unpack one package; returns the .deb."""
    debs, root = work / "deb", work / "x" / package
    debs.mkdir(parents=True, exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "-q", "download", package], cwd=debs, check=True)
    deb = sorted(debs.glob(f"{package}_*.deb"))[-1]
    if not root.exists():
        partial = root.with_name(root.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(deb), str(partial)], check=True)
        partial.rename(root)
    return deb


def read_package(source: Source, work: Path) -> list[Document]:
    """Every prose page of one package, in an order that a hash of the path decides."""
    deb, root = fetch(source.package, work), work / "x" / source.package
    assert deb.exists()
    documents, size = [], 0
    # Some packages link one page under two paths; resolving and hashing the path settles both.
    home = root.resolve()
    pages = {p.resolve() for p in root.rglob("*.html") if p.is_file()}
    names = [str(p.relative_to(home)) for p in pages if p.is_relative_to(home)]
    for name in sorted(names, key=stable_hash):
        page, name = home / name, "/" + name
        if SKIP_ALWAYS.search(name) or (source.skip and re.search(source.skip, name)):
            continue
        if source.only and not re.search(source.only, name):
            continue
        try:
            title, text = extract_page(page.read_bytes())
        except (lxml.etree.ParserError, AssertionError, IndexError):
            continue
        text = tidy(text)
        if title and is_prose(text):
            short = re.sub(r"^/usr/share/(doc/)?", "", name)
            title = unicodedata.normalize("NFKC", title).strip()
            documents.append(Document(f"{source.package}:{short}", source.package, title, text))
            size += len(text)
        if size > MAX_PACKAGE_CHARS:
            break
    return documents


class Seen:
    """Word shingles met so far, to tell a paragraph that repeats an earlier one."""

    def __init__(self) -> None:
        self.shingles: set[int] = set()

    def keys(self, paragraph: str) -> list[int]:
        words = re.sub(r"\d+", "0", paragraph.lower()).split()
        if len(words) <= SHINGLE_WORDS:
            return [hash(tuple(words))]
        count = len(words) - SHINGLE_WORDS + 1
        return [hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(count)]

    def share(self, keys: list[int]) -> float:
        return sum(k in self.shingles for k in keys) / len(keys)


def dedupe(doc: Document, seen: Seen, banned: Seen | None) -> Document:
    """The document without paragraphs said before (half their shingles) or held out (a fifth)."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\n+", doc.text):
        keys = seen.keys(paragraph)
        heading = paragraph.startswith("#")
        if heading and kept and kept[-1].startswith("#"):
            kept.pop()  # the section above lost all its text
        short = len(paragraph.split()) <= SHINGLE_WORDS
        if not heading:
            if banned and not short and banned.share(keys) > 0.2:
                continue
            if seen.share(keys) > 0.5 and len(paragraph) > 30:
                continue
            seen.shingles.update(keys)
        kept.append(paragraph)
    if kept and kept[-1].startswith("#"):
        kept.pop()
    return Document(doc.id, doc.package, doc.title, "\n\n".join(kept))


def stable_hash(text: str) -> str:
    return hashlib.sha256(f"octavo-tiny/{text}".encode()).hexdigest()


def choose_held_out(
    documents: list[Document], count: int = 40, per_package: int = 2
) -> list[Document]:
    """Whole documents of 4k to 20k characters by a hash of the id, few from any one package."""
    chosen: list[Document] = []
    taken: Counter[str] = Counter()
    for doc in sorted(documents, key=lambda d: stable_hash(d.id)):
        if 4_000 <= len(doc.text) <= 20_000 and taken[doc.package] < per_package:
            taken[doc.package] += 1
            chosen.append(doc)
        if len(chosen) == count:
            break
    return chosen


def split_documents(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(training, held out), deduplicated in and between, the held-out side first."""
    held = choose_held_out(documents)
    ids, banned, seen = {d.id for d in held}, Seen(), Seen()
    held = [dedupe(d, banned, None) for d in held]
    seen.shingles |= banned.shingles
    rest = sorted((d for d in documents if d.id not in ids), key=lambda d: stable_hash(d.id))
    train = [dedupe(d, seen, banned) for d in rest]
    return [d for d in train if is_prose(d.text)], [d for d in held if len(d.text) >= 2_000]


def build_corpus(work: Path, workers: int = 2) -> dict[str, object]:
    """Write train.jsonl and heldout.jsonl under `work`; returns the facts for the model card."""
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(read_package, SOURCES, [work] * len(SOURCES)))
    train, held = split_documents([d for docs in found for d in docs])
    write_jsonl(work / "train.jsonl", train)
    write_jsonl(work / "heldout.jsonl", held)
    chars = Counter({s.package: 0 for s in SOURCES})
    for doc in train:
        chars[doc.package] += len(doc.text)
    packages = []
    for source in SOURCES:
        deb = fetch(source.package, work)
        packages.append(
            {
                "package": source.package,
                "version": deb.name.split("_")[1].replace("%3a", ":"),
                "licence": source.licence,
                "deb_sha256": sha256_file(deb),
                "train_chars": chars[source.package],
                "held_out": sum(d.package == source.package for d in held),
            }
        )
    facts: dict[str, object] = {
        "packages": packages,
        "train_documents": len(train),
        "train_bytes": sum(len(d.text.encode()) for d in train),
        "held_out_documents": len(held),
        "held_out_bytes": sum(len(d.text.encode()) for d in held),
        "train_sha256": sha256_file(work / "train.jsonl"),
        "held_out_sha256": sha256_file(work / "heldout.jsonl"),
    }
    (work / "corpus.json").write_text(json.dumps(facts, indent=1))
    return facts


def sha256_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_jsonl(path: Path, documents: Iterable[Document]) -> None:
    lines = [json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in documents]
    path.write_text("".join(lines), encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Document(**json.loads(line))
