"""Stage 0a: `transformers generate` on static batches, as most people begin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from octavo.playbook.loads import Asked
from octavo.playbook.options import Settled


class TransformersModel:
    """Greedy, keys and values in its own dynamic cache, a batch padded on the left."""

    def __init__(self, settled: Settled) -> None:
        import torch
        import transformers as library

        transformers: Any = library
        self._torch, self._transformers = torch, transformers
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if settled.device == "cpu":
            torch.set_num_threads(settled.num_threads)
        self._device = torch.device(settled.device)
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            settled.model, dtype=getattr(torch, settled.dtype), attn_implementation="sdpa"
        )
        self._model.to(self._device).eval()
        self._model.generation_config.eos_token_id = None  # lengths are the workload's

    @property
    def weight_bytes(self) -> int:
        """Tied ones once."""
        return sum(each.nbytes for each in self._model.parameters())

    def run(self, batch: Sequence[Asked]) -> None:
        """The batch runs as long as its longest answer; a token counts when its step ends, as if it
        were sent then."""
        torch = self._torch
        longest = max(len(each.request.prompt) for each in batch)
        padding = [longest - len(each.request.prompt) for each in batch]
        ids = [
            [0] * pad + list(each.request.prompt) for pad, each in zip(padding, batch, strict=True)
        ]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        wanted = [each.request.output_tokens for each in batch]

        def take(input_ids: Any, scores: Any, **_: Any) -> Any:
            now_s = time.perf_counter()
            made = input_ids.shape[1] - longest
            for each, count in zip(batch, wanted, strict=True):
                if made <= count:
                    each.token_times_s.append(now_s)
            return torch.tensor([made >= count for count in wanted], device=self._device)

        config = self._transformers.GenerationConfig(
            max_new_tokens=max(wanted), do_sample=False, eos_token_id=None, pad_token_id=0,
            use_cache=True,
        )  # fmt: skip
        with torch.inference_mode():
            self._model.generate(
                torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                generation_config=config,
                stopping_criteria=self._transformers.StoppingCriteriaList([take]),
            )
        assert all(len(each.token_times_s) == each.request.output_tokens for each in batch)
