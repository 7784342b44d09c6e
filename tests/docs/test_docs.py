"""The docs say what the code has: parameters, metrics, links, and the examples run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from octavo.sampling_params import NAMES, parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "client/README.md",
    ROOT / "models/octavo-tiny/README.md",
]  # fmt: skip


def rows(page: str) -> dict[str, list[str]]:
    """The cells of each table row that begins with a name, by that name."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            assert match[1] not in found, f"{match[1]} stands twice in {page}"
            found[match[1]] = [cell.strip() for cell in line.strip("|").split(" | ")]
    return found


def test_every_parameter_is_documented_with_its_default() -> None:
    documented = rows("parameters.md")
    assert set(documented) == set(NAMES)
    spoken = {"none": (None, (), {}), "random": (None,), "true": (True,), "false": (False,)}
    for name, (_, default, *_) in documented.items():
        own = getattr(parse({}), name)
        assert own in spoken.get(default, ()) or str(default) == f"{own:g}", name


# Where a bound is a plain number: inside it is taken, beyond it is refused.
BOUNDS = re.compile(r"^(above )?(−?[\d,]+),? to (−?[\d,]+)$")


def test_documented_bounds_are_the_ones_that_hold() -> None:
    checked = 0
    for name, (_, _, bounds, *_) in rows("parameters.md").items():
        if match := BOUNDS.match(bounds):
            low, high = (float(n.replace("−", "-").replace(",", "")) for n in match.group(2, 3))
            step = 1 if isinstance(getattr(parse({name: high}), name), int) else 0.5
            parse({name: high})
            for outside in (high + step, low if match[1] else low - step):
                with pytest.raises(Exception, match=f"^{name}: got"):
                    parse({name: outside})
            checked += 1
    assert checked >= 9


def test_the_metrics_page_is_generated() -> None:
    path = ROOT / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == generate.rendered(page), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = page if not file else page.parent / file
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page.name} links to {target}"


def test_wire_contract_names_every_tensor() -> None:
    text = (ROOT / "docs" / "wire-contract.md").read_text(encoding="utf-8")
    config = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text(encoding="utf-8")
    for name in re.findall(r'name: "(\w+)"', config):
        assert f"`{name}`" in text, name


def python_examples(page: str) -> list[Any]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.e2e
def test_the_quickstarts_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.e2e.target import serving

    examples = python_examples("quickstart.md")
    assert len(examples) == 2
    with serving(tmp_path, "batched") as target:
        ports = target.settings.ports
        for example in examples:
            assert "localhost:800" in example
            here = example.replace("localhost:8000", f"localhost:{ports.http}")
            exec(here.replace("localhost:8001", f"localhost:{ports.grpc}"), {})
            assert len(capsys.readouterr().out) > 40
        body = re.search(r"-d '(\{.*?\})'", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)
        assert body is not None
        answer = target.post("generate_stream", json.loads(body[1]))
        assert answer.status_code == 200 and answer.text.count("data: ") > 10
