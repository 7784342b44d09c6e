"""Stands in for 1/model.py: an Octavo model whose engine fails at a certain prompt."""

import locale

locale.setlocale(locale.LC_ALL, "C.UTF-8")

from octavo.execution.sampler import SampledTokens  # noqa: E402
from octavo.scheduling.sequence import StepPlan  # noqa: E402
from octavo.serving.server import OctavoModel  # noqa: E402

FATAL_PROMPT_TOKENS = 77


class TritonPythonModel(OctavoModel):
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        runner = self._engine.runner
        run = runner.run

        def run_or_fail(plan: StepPlan) -> SampledTokens:
            if any(each.num_tokens == FATAL_PROMPT_TOKENS for each in plan.prefills):
                raise RuntimeError("injected")
            return run(plan)

        runner.run = run_or_fail  # type: ignore[method-assign]
