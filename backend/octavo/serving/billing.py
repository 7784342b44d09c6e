"""What a request cost, for who sent it and for who pays."""

from datetime import datetime, timezone
from typing import Any

from octavo.accounts import Account
from octavo.config import EngineConfig
from octavo.planner.cost import seconds_usd
from octavo.planner.traffic import LoggedRequest
from octavo.serving.request_log import RequestLog


class Billing:
    """The price, and the request log. Any thread may ask."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError if the log cannot be written."""
        self.usd_per_hour = config.price_usd_per_hour
        self.as_of = config.price_as_of
        self._log: RequestLog | None = None
        if config.request_log is not None:
            self._log = RequestLog(config.request_log, config.request_log_bytes)

    @property
    def as_of_timestamp_s(self) -> float | None:
        if self.as_of is None:
            return None
        midnight = datetime(self.as_of.year, self.as_of.month, self.as_of.day, tzinfo=timezone.utc)
        return midnight.timestamp()

    @property
    def dropped_lines(self) -> int:
        return self._log.dropped if self._log else 0

    def usd(self, seconds: float) -> float | None:
        """None without a price."""
        return None if self.usd_per_hour is None else seconds_usd(seconds, self.usd_per_hour)

    def receipt(self, account: Account) -> dict[str, Any]:
        """Without a price what is in dollars is null, and the seconds are there all the same.
        Idle time and overhead are in no receipt: nobody's request caused them."""
        return {
            "usd": self.usd(account.busy_s),
            "prefill_usd": self.usd(account.prefill_s),
            "decode_usd": self.usd(account.decode_s),
            "prefill_s": account.prefill_s,
            "decode_s": account.decode_s,
            "cached_tokens": account.cached_tokens,
            "saved_usd": self.usd(account.saved_s),
            "saved_s": account.saved_s,
            "held_usd": self.usd(account.held_s),
            "held_s": account.held_s,
            "queue_s": account.queue_s,
            "price_usd_per_hour": self.usd_per_hour,
            "price_as_of": None if self.as_of is None else self.as_of.isoformat(),
        }

    def log_request(self, ended: LoggedRequest) -> None:
        if self._log is not None:
            self._log.add(ended)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
