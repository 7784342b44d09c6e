"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU its kernels run in the Triton language's interpreter. Triton looks at this once,
# when anybody first imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from factories import write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Toy models are too small to share out."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))
