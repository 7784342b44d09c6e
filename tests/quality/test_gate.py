"""The gate on octavo-tiny: it passes what is good, fails what is damaged, and says what it cannot
tell."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factories import write_checkpoint
from octavo.errors import ConfigError
from octavo.quality.evidence import Record
from octavo.quality.measure import Reader, score, side_config
from octavo.quality.verdict import Outcome
from octavo.quality.windows import cut_windows
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
from octavo.texts import TextTokenizer, read_texts
from tests.quality.texts import HELD_OUT, TINY, change_tensors, copy_of_tiny, gate, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


def test_a_model_beside_itself_passes_exactly(text: Path, tmp_path: Path) -> None:
    record = gate(TINY, text, tmp_path / "out")
    numbers = record.numbers
    assert record.outcome is Outcome.PASS
    assert (numbers.loss.lower, numbers.loss.estimate, numbers.loss.upper) == (0, 0, 0)
    assert numbers.mean_kl_nats == 0 and numbers.top1_ratio == 1
    assert numbers.documents == 24 and numbers.tokens > 3000
    assert 10 < numbers.baseline_perplexity == numbers.candidate_perplexity < 80
    assert record.candidate == record.baseline


def test_int8_passes(text: Path, tmp_path: Path) -> None:
    """Weights and KV memory together are one candidate."""
    record = gate(TINY, text, tmp_path / "out", weight_format="int8", kv_cache_dtype="int8")
    assert record.outcome is Outcome.PASS
    assert 0 < record.numbers.mean_kl_nats < 0.005 and record.numbers.top1_ratio < 1
    form = record.candidate.form
    assert (form.weights, form.group_size, form.lm_head, form.kv) == ("int8", None, "int8", "int8")
    assert record.baseline.form.weights == record.baseline.form.kv == "bfloat16"


def assert_damaged(record: Record) -> None:
    assert record.outcome is Outcome.FAIL, record.reason
    assert record.numbers.loss.estimate > 2 * record.margin


def test_scales_that_are_off_fail(text: Path, tmp_path: Path) -> None:
    """Of a checkpoint in 4 bits, each group's by 1.3."""
    folder = tmp_path / "int4"
    options = QuantizeOptions(model=str(TINY), out=str(folder), bits=4, group_size=64, threads=1)
    assert list(quantize_checkpoint(options))
    with pytest.raises(ConfigError, match="baseline's weights are quantized"):
        gate(TINY, text, tmp_path / "out", baseline=str(folder))
    whole = gate(folder, text, tmp_path / "out", margin=0.02)
    assert whole.candidate.form.weights == "int4" and whole.candidate.form.group_size == 64
    assert whole.numbers.loss.estimate < 0.04

    def scaled(name: str, own: Tensor) -> Tensor:
        return own * 1.3 if name.endswith("weight_scale") else own

    change_tensors(folder, scaled)
    damaged = gate(folder, text, tmp_path / "out", margin=0.02)
    assert_damaged(damaged)
    assert damaged.candidate.form == whole.candidate.form


def test_two_bits_fail(text: Path, tmp_path: Path) -> None:
    def rounded(name: str, own: Tensor) -> Tensor:
        if not name.endswith("proj.weight"):
            return own
        groups = own.float().view(own.shape[0], -1, 64)
        scales = groups.abs().amax(-1, keepdim=True) / 1.5
        return ((groups / scales).round().clamp(-2, 1) * scales).view(own.shape).to(own.dtype)

    assert_damaged(gate(copy_of_tiny(tmp_path / "m", rounded), text, tmp_path / "out"))


def test_a_wrong_rope_base_fails(text: Path, tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m", rope_theta=100_000.0)
    assert_damaged(gate(folder, text, tmp_path / "out"))


def test_a_layer_of_zeros_fails(text: Path, tmp_path: Path) -> None:
    def zeroed(name: str, own: Tensor) -> Tensor:
        return own * 0 if "layers.3.mlp.down_proj" in name else own

    assert_damaged(gate(copy_of_tiny(tmp_path / "m", zeroed), text, tmp_path / "out"))


def test_a_scale_that_all_kv_memory_shares_fails(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not fit all layers' keys and values, as from a bad calibration."""
    settings = {"kv_cache_dtype": "int8", "kernels": "reference"}
    assert gate(TINY, text, tmp_path / "out", **settings).outcome is Outcome.PASS

    def shared(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scales = torch.full(numbers.shape[:-1], 0.015).half()
        stored = (numbers.float() / 0.015).round().clamp(-127, 127)
        return stored.to(dtype), scales

    monkeypatch.setattr("octavo.kernels.reference_kv.quantize_kv", shared)
    assert_damaged(gate(TINY, text, tmp_path / "out", **settings))


def test_logits_that_are_no_numbers_fail(text: Path, tmp_path: Path) -> None:
    def broken(name: str, own: Tensor) -> Tensor:
        return own * torch.nan if name == "model.norm.weight" else own

    folder = copy_of_tiny(tmp_path / "m", broken)
    record = gate(folder, text, tmp_path / "out")
    assert_damaged(record)
    assert record.numbers.tokens_not_finite == record.numbers.tokens
    with pytest.raises(ConfigError, match="baseline's logits are no numbers"):
        gate(TINY, text, tmp_path / "out", baseline=str(folder))


@pytest.mark.parametrize("documents", [1, 25])
def test_200_tokens_are_inconclusive(tmp_path: Path, documents: int) -> None:
    text = write_text(tmp_path / "text.jsonl", documents, 200 // documents)
    record = gate(TINY, text, tmp_path / "out", weight_format="int8")
    assert record.numbers.tokens <= 210
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.more_documents is not None and record.more_documents >= 19


def test_documents_that_repeat_each_other_are_one(tmp_path: Path) -> None:
    """Else one would do for a sample of any size."""
    text = write_text(tmp_path / "text.jsonl", 3, 200)
    text.write_text(text.read_text(encoding="utf-8") * 20, encoding="utf-8")
    record = gate(TINY, text, tmp_path / "out")
    assert record.numbers.documents == 3 and record.outcome is Outcome.INCONCLUSIVE


def test_random_weights_give_no_signal(text: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "random", vocab_size=4096)
    (folder / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    record = gate(folder, text, tmp_path / "out", baseline=str(folder))
    assert record.outcome is Outcome.NO_SIGNAL
    assert record.numbers.baseline_perplexity > 1024


@pytest.mark.slow
def test_bench_150m_gives_no_signal(text: Path, tmp_path: Path) -> None:
    """The shape of the benchmarks' model, whose weights are random too, on octavo-tiny's tokens."""
    folder = write_checkpoint(
        tmp_path / "random", hidden_size=1024, intermediate_size=2816, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, num_hidden_layers=12, vocab_size=32768,
        max_position_embeddings=8192, rope_theta=500_000.0, tie_word_embeddings=True,
        torch_dtype="bfloat16",
    )  # fmt: skip
    (folder / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    record = gate(folder, text, tmp_path / "out", baseline=str(folder), weight_format="int8")
    assert record.outcome is Outcome.NO_SIGNAL


def test_losses_beyond_all_numbers_fail(text: Path, tmp_path: Path) -> None:
    """Mean losses whose exponential is none: hundreds of nats a token."""

    def loud(name: str, own: Tensor) -> Tensor:
        return own * 3000 if name == "model.norm.weight" else own

    record = gate(copy_of_tiny(tmp_path / "m", loud), text, tmp_path / "out")
    assert_damaged(record)
    assert record.numbers.candidate_perplexity > 1e300


def test_what_weakens_a_result_is_said(tmp_path: Path) -> None:
    from octavo.quality.gate import run
    from octavo.quality.options import GateOptions

    def notes(**options: Any) -> list[str]:
        own = {"baseline": str(TINY), "candidate": str(TINY), "out": str(tmp_path / "out")}
        events = run(GateOptions(**{**own, "num_threads": 1, **options}))
        return [event["note"] for event in events if "note" in event]

    short = write_text(tmp_path / "text.jsonl", 2, 60)
    assert notes(text=str(short), weight_format="int8") == []
    (said,) = notes(text=str(short), kv_cache_dtype="int8")
    assert "no window of text.jsonl was longer than 60 tokens; KV int8 is to be" in said
    (tmp_path / "book.txt").write_text("One paragraph.\n\nAnother one.\n", encoding="utf-8")
    (said,) = notes(text=str(tmp_path / "book.txt"))
    assert "book.txt has no form feeds, so each of its 2 paragraphs counts" in said
    (tmp_path / "books.txt").write_text("One book.\n\fAnother one.\n", encoding="utf-8")
    assert notes(text=str(tmp_path / "books.txt")) == []


def test_the_perplexity_is_transformers(tmp_path: Path) -> None:
    """In bfloat16, on the same tokens, over windows that cut documents."""
    from transformers import AutoModelForCausalLM

    text = write_text(tmp_path / "text.jsonl", 8, 500)
    record = gate(TINY, text, tmp_path / "out", context=300)
    tokenizer = TextTokenizer(TINY, 4096)
    windows = cut_windows(tokenizer.documents(read_texts(text)), tokenizer.prefix, 300)
    assert len(windows) == 16
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    nll, tokens = 0.0, 0
    for window in windows:
        ids = torch.tensor(window.token_ids)
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0, window.given - 1 :].float()
        nll += float(torch.nn.functional.cross_entropy(
            logits, ids[window.given :], reduction="sum"))  # fmt: skip
        tokens += window.num_scored
    assert record.numbers.tokens == tokens
    assert record.numbers.baseline_perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-3)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is read in several, each behind what KV memory has of those before."""
    tokenizer = TextTokenizer(TINY, 4096)
    documents = tokenizer.documents(read_texts(HELD_OUT)[:1])
    windows = cut_windows(documents, tokenizer.prefix, 300)[:1]
    config = side_config(TINY, 300, {"dtype": "float32", "num_threads": 1, "kernels": "reference"})
    reader = Reader(config)
    found = []
    for chunk in (256, 300, 32):
        monkeypatch.setattr("octavo.quality.measure._CHUNK_TOKENS", chunk)
        (scores,) = score(reader, reader, windows)
        assert len(scores.baseline_nll) == 300
        found.append(torch.from_numpy(scores.baseline_nll))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"margin": 0.021}, r"--margin = 0\.021: above 0, at most 0\.02"),
        ({"margin": 0.0}, "--margin"),
        ({"context": 4096}, "--context = 4096: from 3 to the model's 2048 tokens"),
        ({"context": 2}, "--context = 2"),
        ({"weight_group_size": 64}, "weight_group_size = 64"),
        ({"weight_format": "int4"}, "weight_group_size = 128: tensor .* 32 or 64 fits it"),
        ({"kv_cache_dtype": "int8", "kv_cache_skip_layers": (9,)}, "layer 9"),
    ],
)
def test_settings_that_cannot_be(
    text: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        gate(TINY, text, tmp_path / "out", **options)
    assert not list((tmp_path / "out").iterdir())


def test_sides_that_read_other_tokens_are_refused(text: Path, tmp_path: Path) -> None:
    toy = write_checkpoint(tmp_path / "toy")
    with pytest.raises(ConfigError, match="vocab_size = 4096 of the baseline, 512 of"):
        gate(toy, text, tmp_path / "out")
    other = copy_of_tiny(tmp_path / "m")
    tokenizer = (other / "tokenizer.json").read_text(encoding="utf-8")
    swapped = tokenizer.replace('"Ġthe": ', '"Ġthe@": ').replace('"Ġof": ', '"Ġthe": ')
    swapped = swapped.replace('"Ġthe@": ', '"Ġof": ')
    assert swapped != tokenizer
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(ConfigError, match="into different tokens"):
        gate(other, text, tmp_path / "out")


def test_evidence_goes_nowhere_else(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out"):
        list(_run(text, str(tmp_path / "file" / "none")))
    (tmp_path / "quality.json").write_text("[]")
    with pytest.raises(ConfigError, match="move it away"):
        list(_run(text, str(tmp_path)))


def test_a_new_folder_is_made(text: Path, tmp_path: Path) -> None:
    next(iter(_run(text, str(tmp_path / "new" / "one"))))
    assert (tmp_path / "new" / "one").is_dir()


def _run(text: Path, out: str) -> Iterator[dict[str, Any]]:
    from octavo.quality.gate import run
    from octavo.quality.options import GateOptions

    return run(GateOptions(baseline=str(TINY), candidate=str(TINY), text=str(text), out=out))
