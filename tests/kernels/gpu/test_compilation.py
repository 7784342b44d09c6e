"""What the interpreter runs is also what the compiler takes, with or without a GPU."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_operators_compile_for_hopper() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_ops.py"))],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = set(done.stdout.split())
    assert {"_norm_kernel", "_gated_kernel", "_move_kernel", "_rope_and_store_kernel"} <= kernels
    assert {"chunk_stats", "_draw", "_penalize", "_logprobs", "_uniform_numbers"} <= kernels
