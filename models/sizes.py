"""The models that `train.py` makes: the network and the recipe of each, by name."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_model import TinyConfig
from training import TrainConfig


@dataclass(frozen=True, slots=True)
class Size:
    """One model; `machine` is where the shipped weights were trained, `why` what it is for."""

    network: TinyConfig
    recipe: TrainConfig
    machine: str
    why: str


SIZES = {
    "octavo-tiny": Size(
        network=TinyConfig(),
        recipe=TrainConfig(),
        machine="two shared CPU cores with AVX-512 bf16",
        why="It is small enough to live in git ({megabytes:.1f} MB of bf16) and real enough to\n"
        "test, serve and quantize: it writes documentation English, and its scores move when\n"
        "something breaks.",
    ),
    # Twice the width, and fewer layers so that git can still hold it. Almost four epochs: beyond
    # that repeated text is worth ever less (Muennighoff et al., 2023, arXiv:2305.16264).
    "octavo-small": Size(
        network=TinyConfig(hidden_size=512, intermediate_size=1408, num_layers=4, num_heads=8,
                           num_kv_heads=4),
        recipe=TrainConfig(
            steps=5632,
            long_from=5200,
            short_region=5248,
            rate=((3900, 1.0), (5632, 0.0)),
            adam_lr=2e-3,
        ),
        machine="one NVIDIA H200",
        why="It is twice as wide as octavo-tiny ({megabytes:.1f} MB of bf16) and has seen the\n"
        "same text more often: a second model on which formats and their gate are measured.",
    ),
}  # fmt: skip
