"""What it costs to bring blocks back, in seconds: the figures behind swap or recompute."""

from octavo.scheduling.sequence import StepPlan
from octavo.scheduling.tiers import Tiers

# Weight of the newest observation in a moving average.
_NEWEST = 0.2


class RestoreCosts:
    """Compares computing tokens again with moving their blocks, by rates measured in service."""

    def __init__(self, block_size: int, tiers: Tiers | None) -> None:
        self._block_size = block_size
        self._tiers = tiers
        self._decode_s: float | None = None  # a step without prefill
        self._prefill_s_per_token: float | None = None
        self._wait_s: float | None = None  # from a preemption until there is room again

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """Learns from a step that has run. Of a mixed step the prefill's part is what it took
        beyond a step of decodes alone."""
        if not plan.prefills:
            self._decode_s = _average(self._decode_s, elapsed_s)
            return
        if plan.decodes:
            if self._decode_s is None or elapsed_s <= self._decode_s:
                return
            elapsed_s -= self._decode_s
        self._prefill_s_per_token = _average(
            self._prefill_s_per_token, elapsed_s / plan.num_prefill_tokens
        )

    def recompute_s(self, num_tokens: int) -> float:
        """To compute tokens again. Infinite before any have been computed: nothing is known."""
        if self._prefill_s_per_token is None:
            return float("inf") if num_tokens else 0.0
        return num_tokens * self._prefill_s_per_token

    def observe_wait(self, wait_s: float) -> None:
        """A preempted sequence runs again."""
        self._wait_s = _average(self._wait_s, wait_s)

    def swap_s(self, num_blocks: int) -> float:
        """To store blocks and to fetch them back, beyond the time that a preempted sequence waits
        anyway: blocks move while others compute. Infinite without a tier."""
        if self._tiers is None:
            return float("inf")
        return max(self._transfer_s(num_blocks, self._tiers) - (self._wait_s or 0.0), 0.0)

    def restore_s(self, num_tokens: int, num_blocks: int) -> float:
        """By the cheaper way. Infinite if neither has been measured."""
        return min(self.recompute_s(num_tokens), self.swap_s(num_blocks))

    def fetch_pays(self, num_blocks: int) -> bool:
        """Whether blocks that a tier has are read sooner than computed."""
        assert self._tiers is not None
        return self._tiers.fetch_s(num_blocks) < self.recompute_s(num_blocks * self._block_size)

    @property
    def saving_pays(self) -> bool:
        """Whether a block that nobody waits for is moved sooner than computed, both ways counted
        in full: it may never be wanted."""
        if self._tiers is None:
            return False
        return self._transfer_s(1, self._tiers) < self.recompute_s(self._block_size)

    def swap_pays(self, num_tokens: int, num_blocks: int) -> bool:
        return self.swap_s(num_blocks) < self.recompute_s(num_tokens)

    def _transfer_s(self, num_blocks: int, tiers: Tiers) -> float:
        return tiers.store_s(num_blocks) + tiers.fetch_s(num_blocks)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _NEWEST * (new - old)
