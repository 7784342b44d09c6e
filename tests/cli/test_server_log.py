from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli import server_log

TABLE = "| llm | 1 | UNAVAILABLE: Internal: TritonModelException: octavo: no tokenizer |\n"
LOADED = "I1123 01:52:10.4 5106 model_lifecycle.cc:839] \"successfully loaded 'llm'\"\n"
REFUSED = (
    "E1123 01:53:03.5 14708 model_lifecycle.cc:642] \"failed to load 'llm' version 1: Internal: "
    "TritonModelException: octavo: dtype = 'int3': not one of auto, bfloat16\\n\\nAt:\\n"
    '  /r/llm/1/model.py(8): initialize\\n"\n'
)
DIED = (
    "E1123 01:53:08.1 14749 model_lifecycle.cc:642] \"failed to load 'llm' version 1: Internal: "
    "Stub process 'llm_0_0' is not healthy.\"\n"
    "error: creating server: Internal - failed to load all models\n"
)
BUSY = (
    'E1123 01:54:12.8 21222 main.cc:245] "failed to start GRPC service: Unavailable - '
    "Socket '127.0.0.1:18001' already in use \"\n"
)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (REFUSED, "dtype = 'int3': not one of auto, bfloat16"),
        ("octavo.errors.ConfigError: block_size = 3\n", "block_size = 3"),
        (TABLE, "no tokenizer"),
        (DIED, None),
        ("octavo: 4096 blocks of 16 tokens\n" + LOADED, None),
    ],
    ids=["exception", "traceback", "table", "died", "progress-line"],
)
def test_refusal_is_what_the_engine_said(tmp_path: Path, text: str, refusal: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(LOADED + text, encoding="utf-8")
    assert server_log.refusal(log) == refusal


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (DIED, "Internal: Stub process 'llm_0_0' is not healthy."),
        (BUSY, BUSY.partition('] "')[2].rstrip(' "\n')),
        (
            "terminate called\n  what():  boost::interprocess::lock_exception\n",
            "boost::interprocess::lock_exception",
        ),
        ("error: creating server: Internal - no repository\n", "Internal - no repository"),
        (LOADED, None),
    ],
    ids=["model", "port", "lock", "server", "none"],
)
def test_cause_is_the_most_telling_line(tmp_path: Path, text: str, cause: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(text, encoding="utf-8")
    assert server_log.cause(log) == cause


@pytest.mark.parametrize(
    ("cause", "again"),
    [
        ("Internal: ModuleNotFoundError: No module named 'x'", True),
        ("Internal: torch.cuda.OutOfMemoryError: of 8 GiB", True),
        ("failed to start HTTP service: Unavailable - Socket already in use", True),
        ("Internal: Stub process 'llm_0_0' is not healthy.", False),
        ("boost::interprocess::lock_exception", False),
    ],
)
def test_only_a_death_is_worth_one_more_start(cause: str, again: bool) -> None:
    assert server_log.will_come_again(cause) is again


def test_log_that_was_never_written_says_nothing(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert server_log.tail(absent) == []
    assert server_log.cause(absent) is None


def test_tail_leaves_out_tables_and_routine(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stub = 'I1123 01:53:03.2 14708 pb_stub.cc:366] "Failed to initialize Python stub: KeyError"\n'
    log.write_text(LOADED + "| llm | READY |\n+---+\n\n" + stub + "error: bye\n", encoding="utf-8")
    assert server_log.tail(log) == [stub.strip(), "error: bye"]


def test_tail_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntw\xff\nthree\n")
    assert server_log.tail(log, 2) == ["tw\ufffd", "three"]


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"server-20260101-0000{index:02}-000000.log").touch()
    new = server_log.new_log_file(tmp_path)
    new.touch()
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 20
    assert kept[0].name == "server-20260101-000011-000000.log"
    assert kept[-1] == new
