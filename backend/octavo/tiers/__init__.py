"""Where KV blocks go that leave the pool: host memory, a folder, a server that others share.

Knows keys and bytes: a key stands for one content, a row of bytes. A fault of any of these places
is a miss and a count, never a wrong byte and never an exception.

    store   queue → first tier that takes it → what that evicts: queue → next tier …
    fetch   first tier that has the next key → … until a key is nowhere

Each tier has a thread that writes and one that reads; only they wait for I/O.
"""

from octavo.tiers.opening import open_tiers
from octavo.tiers.tier import FaultKind
from octavo.tiers.tier_stats import SkipCause, TierGauges, TierStats
from octavo.tiers.tiers import Fetch, Tiers

__all__ = ["FaultKind", "Fetch", "SkipCause", "TierGauges", "TierStats", "Tiers", "open_tiers"]
