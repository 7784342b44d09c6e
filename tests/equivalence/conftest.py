"""The models that every equivalence is held on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from equivalences import Case, assert_close, assert_equal
from factories import Recorder, random_prompts

OCTAVO_TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
TEXTS = (
    "The block table maps positions to blocks.",
    "Install the package, then start the server with the following command:",
    "A",
    "To configure the load balancer, edit the listener section and set the protocol to HTTP. "
    "The timeout is given in milliseconds; a value of zero disables it. Reload the service "
    "after each change, and check the log for warnings about deprecated options.",
    "def main():",
    "See also the section on migrations, where each column of the table is explained.",
)


def _compare(dtype: str) -> Callable[[Recorder, Recorder], None]:
    return assert_equal if dtype == "float32" else assert_close


def _toy(folder: Path, dtype: str) -> Case:
    prompts = random_prompts([64, 3, 50, 17, 33, 1, 28, 8, 40, 5, 20, 12])
    return Case(folder, dtype, prompts, 24, 16, _compare(dtype))


def _octavo_tiny(dtype: str) -> Case:
    tokenizer = Tokenizer.from_file(str(OCTAVO_TINY / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    return Case(OCTAVO_TINY, dtype, prompts, 24, 4, _compare(dtype))


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=["toy", "octavo-tiny"])
def case(request: pytest.FixtureRequest, toy_folder: Path, dtype: str) -> Case:
    return _toy(toy_folder, dtype) if request.param == "toy" else _octavo_tiny(dtype)


@pytest.fixture(scope="session", params=["toy", "octavo-tiny"])
def exact_case(request: pytest.FixtureRequest, toy_folder: Path) -> Case:
    """In float32 only: for what has to be equal token for token."""
    return _toy(toy_folder, "float32") if request.param == "toy" else _octavo_tiny("float32")
