"""The training loop: data order, schedule, optimizers and checkpoints that resume exactly.

Everything that a step needs follows from its number and the seed, so a run that was stopped after
any checkpoint goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_model import TinyConfig, TinyLlama
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The recipe. Two phases: short rows, then rows of the whole context while the rate falls."""

    seed: int = 20
    steps: int = 1720
    long_from: int = 1592
    tokens_per_step: int = 8192
    short_length: int = 512
    # The stream's layout in steps: where rows of each length are cut. At least what is used.
    short_region: int = 1760
    long_region: int = 512
    warmup_steps: int = 60
    # (step, share of the full rate), linear in between.
    rate: tuple[tuple[int, float], ...] = (
        (1320, 1.0),
        (1592, 38 / 55),
        (1621, 3401 / 5720),
        (1720, 0.0),
    )
    muon_lr: float = 4e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    checkpoint_every_s: float = 120.0

    def lr_factor(self, step: int) -> float:
        """Warm up, stay, then fall along `rate`."""
        corners, shares = zip(*self.rate, strict=True)
        return min((step + 1) / self.warmup_steps, float(np.interp(step, corners, shares)))

    def first_steps(self, steps: int) -> TrainConfig:
        """The recipe stopped early, for a quick try; its rate has not fallen."""
        return replace(self, steps=min(steps, self.steps))


class TokenStream:
    """Items shuffled anew each epoch, joined, and cut into rows whose order a seed decides."""

    SHUFFLE_STEPS = 256  # rows are mixed among this many steps, so the order has no need of `steps`

    def __init__(
        self, tokens: NDArray[np.uint16], offsets: NDArray[np.int64], cfg: TrainConfig
    ) -> None:
        self.cfg = cfg
        need = (cfg.short_region + cfg.long_region) * cfg.tokens_per_step + 1
        parts, have, epoch = [], 0, 0
        while have < need:
            order = np.random.default_rng([cfg.seed, epoch]).permutation(len(offsets) - 1)
            for item in order:
                parts.append(tokens[offsets[item] : offsets[item + 1]])
            have += len(tokens)
            epoch += 1
        self.tokens = np.concatenate(parts)[:need]

    def batch(self, step: int, context_length: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-token targets [rows, length] of one step."""
        cfg = self.cfg
        long = step >= cfg.long_from
        length = context_length if long else cfg.short_length
        region_start = cfg.short_region if long else 0
        region_steps = cfg.long_region if long else cfg.short_region
        window, within = divmod(step - (cfg.long_from if long else 0), self.SHUFFLE_STEPS)
        window_start = window * self.SHUFFLE_STEPS
        rows = cfg.tokens_per_step // length
        window_steps = min(self.SHUFFLE_STEPS, region_steps - window_start)
        rng = np.random.default_rng([cfg.seed, int(long), window])
        order = rng.permutation(window_steps * rows)[within * rows : (within + 1) * rows]
        base = (region_start + window_start) * cfg.tokens_per_step
        starts = base + order * length
        picked = np.stack([self.tokens[s : s + length + 1] for s in starts]).astype(np.int64)
        both = torch.from_numpy(picked)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def make_optimizers(model: TinyLlama, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(rest, lr=cfg.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adam]


@dataclass(slots=True)
class Progress:
    """What the loop tells its observer after each step."""

    step: int
    loss: float
    tokens_per_s: float
    elapsed_s: float


class Trainer:
    """Owns model, optimizers and step; `run` goes to the end or to the first signal."""

    def __init__(
        self,
        model_cfg: TinyConfig,
        cfg: TrainConfig,
        stream: TokenStream,
        folder: Path,
        device: str,
        compile_model: bool,
    ) -> None:
        self.model_cfg, self.cfg, self.stream, self.folder = model_cfg, cfg, stream, folder
        self.device = torch.device(device)
        self.model = TinyLlama(model_cfg)
        self.model.initialise(torch.Generator().manual_seed(cfg.seed))
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, cfg)
        for block in self.model.blocks:
            block.blockwise = compile_model and self.device.type == "cpu"
        # Shapes are static per phase, so one compilation for each.
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(self.model, dynamic=False) if compile_model else self.model
        )
        self.step, self.elapsed_s, self.stopped = 0, 0.0, False

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the whole state beside the old one, then swap, so a crash leaves one intact."""
        state = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "model_config": self.model_cfg.as_dict(),
            "train_config": asdict(self.cfg),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint_path)

    def resume(self) -> bool:
        """Load the last checkpoint of the same recipe, if there is one."""
        if not self.checkpoint_path.exists():
            return False
        state = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        old = _recipe(state["train_config"])
        old = replace(old, checkpoint_every_s=self.cfg.checkpoint_every_s)
        if state["model_config"] != self.model_cfg.as_dict() or old != self.cfg:
            raise ValueError(f"{self.checkpoint_path} belongs to another recipe; remove it")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        return True

    def _train_step(self) -> float:
        inputs, targets = self.stream.batch(self.step, self.model_cfg.context_length)
        factor = self.cfg.lr_factor(self.step)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss_fn(inputs.to(self.device), targets.to(self.device))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def run(self, observe: Callable[[Progress], None]) -> bool:
        """True when all steps are done; False when a signal ended it (the state is saved)."""
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        saved_at = time.monotonic()
        try:
            with (self.folder / "train_log.jsonl").open("a") as log:
                while self.step < self.cfg.steps and not self.stopped:
                    began = time.monotonic()
                    loss = self._train_step()
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"loss {loss} at step {self.step}")
                    took = time.monotonic() - began
                    self.step += 1
                    self.elapsed_s += took
                    rate = self.cfg.tokens_per_step / took
                    log.write(json.dumps({"step": self.step, "loss": loss, "tok_s": rate}) + "\n")
                    observe(Progress(self.step, loss, rate, self.elapsed_s))
                    if time.monotonic() - saved_at > self.cfg.checkpoint_every_s:
                        self.save()
                        log.flush()
                        saved_at = time.monotonic()
            self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.step >= self.cfg.steps

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True


def load_trained(path: Path) -> tuple[TinyLlama, TrainConfig, int, float]:
    """Model in fp32 on the CPU, recipe, steps done and seconds spent, from a checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = TinyLlama(TinyConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    return model.eval(), _recipe(state["train_config"]), state["step"], state["elapsed_s"]


def _recipe(saved: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**saved | {"rate": tuple(tuple(corner) for corner in saved["rate"])})
