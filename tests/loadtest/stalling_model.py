"""Stands in for 1/model.py: an Octavo model whose engine stands still at fixed times."""

import locale

locale.setlocale(locale.LC_ALL, "C.UTF-8")

import time  # noqa: E402

from octavo.execution.sampler import SampledTokens  # noqa: E402
from octavo.scheduling.sequence import StepPlan  # noqa: E402
from octavo.serving.server import OctavoModel  # noqa: E402

STALL_EVERY_S, STALL_S = 0.2, 0.05


class TritonPythonModel(OctavoModel):
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        runner = self._engine.runner
        run = runner.run

        def run_after_the_stall(plan: StepPlan) -> SampledTokens:
            time.sleep(max(STALL_S - time.monotonic() % STALL_EVERY_S, 0))
            return run(plan)

        runner.run = run_after_the_stall  # type: ignore[method-assign]
