"""Tiers from settings."""

from collections.abc import Callable
from functools import partial

from octavo.config import TierConfig
from octavo.errors import ConfigError
from octavo.tiers.disk_folder import DiskFolder
from octavo.tiers.envelope import Envelope
from octavo.tiers.host_memory import HostMemory
from octavo.tiers.level import Level
from octavo.tiers.redis_server import RedisServer
from octavo.tiers.tier import Tier
from octavo.tiers.tier_stats import TierStats
from octavo.tiers.tiers import Tiers


def open_tiers(
    config: TierConfig, *, block_bytes: int, namespace: bytes, on_arrival: Callable[[], None]
) -> Tiers | None:
    """The tiers that `config` turns on, fastest first; None if there is none.

    `namespace` stands for what makes the blocks of two engines of one kind: model, formats.
    `on_arrival` is called, in any thread, for each fetch that is done and not cancelled. A place
    that does not work is not fatal: it is tried again later. Raises ConfigError for one that can
    never take a block, and for a folder that another engine uses.
    """
    envelope = Envelope(namespace, block_bytes)
    opened: list[Level] = []
    below: Level | None = None
    try:
        for make, link in reversed(_configured(config, envelope)):
            stats = TierStats()
            below = Level(
                make(stats), block_bytes, stats, below=below,
                max_queue_bytes=config.store_queue_bytes, link_bytes_per_s=link,
            )  # fmt: skip
            opened.insert(0, below)
            below.open()
    except ConfigError:
        for level in opened:
            level.close(0.0)
        raise
    return Tiers(opened, block_bytes=block_bytes, on_arrival=on_arrival) if opened else None


def _configured(
    config: TierConfig, envelope: Envelope
) -> list[tuple[Callable[[TierStats], Tier], int | None]]:
    """How to make each tier, and its link's limit, from above to below."""
    made: list[tuple[Callable[[TierStats], Tier], int | None]] = []
    for name, given, least in (
        ("host_bytes", config.host_bytes, envelope.block_bytes),
        ("disk_bytes", config.disk_bytes, envelope.size_bytes),
        ("redis_bytes", config.redis_bytes, envelope.size_bytes),
    ):
        if 0 < given < least:
            raise ConfigError(
                f"engine settings: kv_tiers.{name} = {given}: should be at least {least}, "
                "what one block of this model takes there"
            )
    if config.host_bytes:
        host = partial(HostMemory, config.host_bytes, envelope.block_bytes)
        made.append((host, config.host_link_bytes_per_s))
    if config.disk_path is not None:
        disk = partial(DiskFolder, config.disk_path, config.disk_bytes, envelope)
        made.append((disk, config.disk_link_bytes_per_s))
    if config.redis_url is not None:
        server = partial(
            RedisServer, config.redis_url.get_secret_value(), config.redis_bytes, envelope,
            timeout_s=config.redis_timeout_s, expiry_s=config.redis_expiry_s,
        )  # fmt: skip
        made.append((server, config.redis_link_bytes_per_s))
    return made
