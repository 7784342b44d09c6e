"""`octavo serve` of a quantized form: refused without evidence, served with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from octavo.cli import serve
from octavo.cli.embedded_server import EmbeddedServer
from octavo.cli.ports import Ports
from octavo.cli.server_settings import ServerSettings
from tests.e2e.target import REPOSITORY, Target, wait_until
from tests.quality.texts import copy_of_tiny, gate, write_text

pytestmark = pytest.mark.e2e

OCTAVO = Path(sys.executable).with_name("octavo")


def serve_command(folder: Path, ports: Ports) -> list[str]:
    return [
        str(OCTAVO), "serve", str(folder), "--set", "kv_cache_dtype=int8",
        f"--http-port={ports.http}", f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}", f"--log-file={folder.parent / 'server.log'}",
        "--drain-timeout=2",
    ]  # fmt: skip


def test_a_form_without_evidence_is_not_started(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    done = subprocess.run(
        serve_command(folder, Ports.free()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == serve.EXIT_NOT_STARTED != 0
    said = next(line for line in done.stderr.splitlines() if "quality_gate" in line)
    assert said.startswith("octavo: quality_gate = 'require': m (weights bfloat16, ")
    assert "KV memory int8, computed in bfloat16): there is no evidence for it" in said
    assert said.endswith(f"measures it: octavo gate {folder} {folder} --kv int8 --text FILE")
    assert "trying once more" not in done.stderr and done.stdout == ""


def test_a_form_with_evidence_is_served_and_shows_it(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    text = write_text(tmp_path / "text.jsonl", longest=1_100)
    record = gate(folder, text, folder, baseline=str(folder), kv_cache_dtype="int8")
    ports, output = Ports.free(), tmp_path / "output"
    with output.open("w") as out:
        launcher = subprocess.Popen(
            serve_command(folder, ports), stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        wait_until(lambda: "Ctrl-C drains" in output.read_text(), "ready", timeout_s=90)
        numbers, loss = record.numbers, record.numbers.loss
        said = (
            f"weights bfloat16, KV int8 · perplexity {100 * loss.estimate:+.2f} % "
            f"(≤ {100 * loss.upper:+.2f} %) of margin 1 %"
        )
        assert f"  quality  {said}\n" in output.read_text()
        settings = ServerSettings(
            repository=REPOSITORY, ports=ports, log_file=tmp_path / "server.log"
        )
        with httpx.Client(trust_env=False) as http:
            metrics = Target(EmbeddedServer(settings), http).metrics().value
        assert metrics("octavo_quality_gate", gate="pass", kv="int8", weights="bfloat16") == 1
        for name, value in (
            ("margin_ratio", 0.01),
            ("perplexity_loss_ratio", loss.estimate),
            ("perplexity_loss_lower_ratio", loss.lower),
            ("perplexity_loss_upper_ratio", loss.upper),
            ("mean_kl_nats", numbers.mean_kl_nats),
            ("top1_agreement_ratio", numbers.top1_ratio),
            ("context_tokens", record.text.longest),
            ("measured_timestamp_seconds", datetime.fromisoformat(record.date).timestamp()),
        ):
            # Triton prints six digits behind the point.
            assert metrics(f"octavo_quality_{name}") == pytest.approx(value, abs=1e-6), name
    finally:
        launcher.send_signal(signal.SIGINT)
        code = launcher.wait(60)
    assert code == serve.EXIT_STOPPED
