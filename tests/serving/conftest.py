"""Models under the fake server, whose module octavo.serving imports by name."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_FAKE = str(Path(__file__).parent / "fake_triton")
sys.path.insert(0, _FAKE)
import triton_python_backend_utils as pb_utils  # noqa: E402

sys.path.remove(_FAKE)

from tests.serving import checkpoints  # noqa: E402
from tests.serving.harness import Served  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OCTAVO_")]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _no_metrics_of_before() -> None:
    pb_utils.MetricFamily.created.clear()


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def scripted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_scripted_checkpoint(tmp_path_factory.mktemp("scripted"))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts models; each is checked at the end."""
    started: list[Served] = []

    def start(folder: Path, *, batched: bool = True, **settings: object) -> Served:
        # Whose steps are long enough for a test to act within a request.
        settings = {"kernels": "reference", **settings}
        version = tmp_path / str(len(started) + 1)
        started.append(Served(folder, version, batched=batched, settings=settings))
        return started[-1]

    yield start
    for served in started:
        served.check()


@pytest.fixture(scope="module")
def scripted(scripted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted model with default settings, for tests that leave nothing behind."""
    served = Served(scripted_folder, tmp_path_factory.mktemp("model") / "1")
    yield served
    served.check()
