"""Whose the engine's time was: seconds for each request and for each tenant."""

import threading
from dataclasses import dataclass, field

MAX_TENANTS = 32  # with labels of their own; requests of further ones count as OTHER_TENANTS
OTHER_TENANTS = "other"


@dataclass(slots=True)
class Seconds:
    """Written by the engine's thread; who reads from another may see one a step behind.

    prefill_s, decode_s: shares of the steps' time
    saved_s: prefill that cached tokens have spared, at the rate measured then
    held_s: what it took to keep these tokens' blocks while nobody used them
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    saved_s: float = 0.0
    held_s: float = 0.0

    @property
    def busy_s(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(slots=True)
class Account(Seconds):
    """Of one request, all its sequences together."""

    cached_tokens: int = 0
    queue_s: float = 0.0  # received → first computed step
    tenant: Seconds = field(default_factory=Seconds)


class TenantLabels:
    """The first tenants keep their names, so that metrics are bounded. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()

    def of(self, tenant: str) -> str:
        """`tenant`, or OTHER_TENANTS; "" is who names none."""
        with self._lock:
            if tenant not in self._names:
                if len(self._names) >= MAX_TENANTS:
                    return OTHER_TENANTS
                self._names.add(tenant)
            return tenant
