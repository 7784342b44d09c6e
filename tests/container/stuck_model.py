"""Stands in for 1/model.py: an Octavo model whose decode loop hangs at a certain prompt."""

import locale

locale.setlocale(locale.LC_ALL, "C.UTF-8")

import threading  # noqa: E402

from octavo.execution.sampler import SampledTokens  # noqa: E402
from octavo.scheduling.sequence import StepPlan  # noqa: E402
from octavo.serving.server import OctavoModel  # noqa: E402

HANGING_PROMPT_TOKENS = 77


class TritonPythonModel(OctavoModel):
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        runner = self._engine.runner
        run = runner.run

        def run_or_hang(plan: StepPlan) -> SampledTokens:
            if any(each.num_tokens == HANGING_PROMPT_TOKENS for each in plan.prefills):
                threading.Event().wait()
            return run(plan)

        runner.run = run_or_hang  # type: ignore[method-assign]
