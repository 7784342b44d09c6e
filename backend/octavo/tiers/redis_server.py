"""Blocks in a server that speaks Redis's protocol, shared by all engines of one namespace.

    octavo:kv:{<namespace>}:<key>    header and row, until nobody has used it for `expiry_s`
    octavo:kv:{<namespace>}:lru      sorted set of the keys by the server's time of their last use

All entries have one length, so the bound in bytes is a bound on the size of the sorted set: scripts
keep it, so that no counter can drift. Contents do not pass through a script, which would copy them
(a quarter of the speed), but come in one transaction with the script that makes room for them.
"""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from octavo.errors import ConfigError
from octavo.tiers.envelope import HEADER_BYTES, Envelope, Keys, Row
from octavo.tiers.tier import FaultKind, MoveDown, TierFault
from octavo.tiers.tier_stats import TierStats

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local expiry_s = tonumber(ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - expiry_s * 1000000)
"""
# ARGV: expiry, prefix, keys. Those that are here count as used; the answer is the numbers of the
# others.
_TOUCH = (
    _NOW
    + """
local missing = {}
for i = 3, #ARGV do
    if redis.call('EXPIRE', ARGV[2] .. ARGV[i], expiry_s) == 1 then
        redis.call('ZADD', KEYS[1], now + i, ARGV[i])
    else
        redis.call('ZREM', KEYS[1], ARGV[i])
        missing[#missing + 1] = i - 3
    end
end
redis.call('EXPIRE', KEYS[1], expiry_s)
return missing
"""
)
# ARGV: expiry, prefix, capacity, keys, no more than the capacity. Makes room for contents that come
# right after, so that the bound holds at any time. The answer: evicted, entries.
_ADMIT = (
    _NOW
    + """
for i = 4, #ARGV do
    redis.call('ZREM', KEYS[1], ARGV[i])
end
local surplus = redis.call('ZCARD', KEYS[1]) + #ARGV - 3 - tonumber(ARGV[3])
if surplus > 0 then
    local oldest = redis.call('ZPOPMIN', KEYS[1], surplus)
    for i = 1, #oldest, 2 do
        redis.call('DEL', ARGV[2] .. oldest[i])
    end
end
for i = 4, #ARGV do
    redis.call('ZADD', KEYS[1], now + i, ARGV[i])
end
redis.call('EXPIRE', KEYS[1], expiry_s)
return {math.max(surplus, 0), redis.call('ZCARD', KEYS[1])}
"""
)
# ARGV: prefix, keys.
_REMOVE = """
for i = 2, #ARGV do
    redis.call('DEL', ARGV[1] .. ARGV[i])
    redis.call('ZREM', KEYS[1], ARGV[i])
end
return redis.call('ZCARD', KEYS[1])
"""


def _kind(exc: Exception) -> FaultKind:
    if isinstance(exc, redis.exceptions.TimeoutError):
        return "timeout"
    if isinstance(exc, redis.exceptions.AuthenticationError | redis.exceptions.AuthorizationError):
        return "refused"
    if isinstance(exc, redis.exceptions.OutOfMemoryError):
        return "full"
    if isinstance(exc, redis.exceptions.ResponseError):
        return "refused"
    return "connection"


class RedisServer:
    name = "redis"
    outlives_engine = True
    is_shared = True

    def __init__(
        self,
        url: str,
        capacity_bytes: int,
        envelope: Envelope,
        stats: TierStats,
        *,
        timeout_s: float,
        expiry_s: int,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.capacity_blocks = capacity_bytes // envelope.size_bytes
        self._envelope = envelope
        self._stats = stats
        self._expiry_s = expiry_s
        self._prefix = b"octavo:kv:{%s}:" % envelope.namespace.hex().encode()
        self._lru = self._prefix + b"lru"
        self._entries = 0  # as of the last answer
        # Those seen there of late, as many as there can be; others may have evicted them since.
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        try:
            # A fault is the caller's to see at once: it has other tiers, and the queues wait.
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as exc:
            raise ConfigError(f"kv_tiers.redis_url: {self._shown(exc)}") from None

    @property
    def used_bytes(self) -> int:
        return self._entries * self._envelope.size_bytes

    @property
    def room_blocks(self) -> int:
        return max(0, self.capacity_blocks - self._entries)

    def open(self) -> None:
        with self._lock:
            self._known.clear()
        self._entries = self._call("ZCARD", self._lru)

    def close(self) -> None:
        self._client.close()

    def holds(self, key: bytes) -> bool:
        return key in self._known

    def read(self, keys: Keys) -> list[Row]:
        rows: list[Row] = []
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(self._prefix + key)
            values = pipeline.execute(raise_on_error=False)
        except Exception as exc:
            raise self._fault(exc) from None
        for key, value in zip(keys, values, strict=True):
            row = None if value is None else self._checked(key, value)
            if row is None:
                if value is not None:
                    self._stats.count_error("corrupt")
                    self.remove([key])
                self._forget([key])
                break
            rows.append(row)
        self._know(keys[: len(rows)])
        return rows

    def touch(self, keys: Keys) -> None:
        missing = self._missing(keys)
        self._know(keys)
        self._forget([keys[i] for i in missing])

    def write(self, keys: Keys, rows: list[Row], move_down: MoveDown) -> int:
        """Sends what no engine has stored yet."""
        missing = self._missing(keys)
        self._know(keys)
        if not missing:
            return 0
        try:
            evicted, self._entries = self._store([(keys[i], rows[i]) for i in missing])
        except TierFault as fault:
            self._forget(keys)
            # A server that answers can still be read.
            fault.writes_only = fault.kind in ("full", "refused")
            raise
        self._stats.count_evicted(evicted)
        return len(missing)

    def _store(self, blocks: list[tuple[bytes, Row]]) -> list[int]:
        pipeline = self._client.pipeline(transaction=True)
        keys = [key for key, _ in blocks]
        pipeline.eval(
            _ADMIT, 1, self._lru, self._expiry_s, self._prefix, self.capacity_blocks, *keys
        )
        for key, row in blocks:
            content = b"".join((self._envelope.header(key, row), row.data))
            pipeline.set(self._prefix + key, content, ex=self._expiry_s)
        try:
            admitted, *stored = pipeline.execute(raise_on_error=False)
        except Exception as exc:
            raise self._fault(exc) from None
        faults = [each for each in (admitted, *stored) if isinstance(each, Exception)]
        if faults:  # the others have been done all the same, and are in no order of use
            self._call("DEL", *(self._prefix + key for key in keys))
            raise self._fault(faults[0])
        return admitted  # type: ignore[no-any-return]

    def remove(self, keys: Keys) -> None:
        self._forget(keys)
        self._entries = self._call("EVAL", _REMOVE, 1, self._lru, self._prefix, *keys)

    def _missing(self, keys: Keys) -> list[int]:
        """The numbers of those that are not there; the others count as used."""
        missing: list[int] = self._call(
            "EVAL", _TOUCH, 1, self._lru, self._expiry_s, self._prefix, *keys
        )
        return missing

    def _checked(self, key: bytes, value: Any) -> Row | None:
        if not isinstance(value, bytes) or len(value) != self._envelope.size_bytes:
            return None  # an error in place of a value: what lies there is no string
        row = np.frombuffer(value, np.uint8, offset=HEADER_BYTES).copy()
        return row if value[:HEADER_BYTES] == self._envelope.header(key, row) else None

    def _know(self, keys: Keys) -> None:
        with self._lock:
            for key in keys:
                self._known[key] = None
                self._known.move_to_end(key)
            while len(self._known) > self.capacity_blocks:
                self._known.popitem(last=False)

    def _forget(self, keys: Keys) -> None:
        with self._lock:
            for key in keys:
                self._known.pop(key, None)

    def _call(self, *command: Any) -> Any:
        try:
            return self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except Exception as exc:
            raise self._fault(exc) from None

    def _fault(self, exc: Exception) -> TierFault:
        with self._lock:
            self._known.clear()
        return TierFault(_kind(exc), self._shown(exc))

    def _shown(self, exc: Exception) -> str:
        """The client's words, without the command and without the password should they have it."""
        text = " ".join(str(exc).split()).rpartition("caused error: ")[2] or type(exc).__name__
        client = getattr(self, "_client", None)
        password = client and client.connection_pool.connection_kwargs.get("password")
        return text.replace(password, "…") if password else text
