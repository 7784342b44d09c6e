"""Fixed-size blocks of KV memory: reference-counted, and kept for reuse after their last user.

    block id          0     1     2     3     4     5
    reference count   1     2     0     1     0     0
    key               k0    k1    k2    -     -     -
    state             A     A,B   cached B    free  free      hand-out order: 5 4, then 2

Sequence A holds blocks 0 and 1, B holds 1 and 3. A block with a key is full: its content is known
by the hash of its tokens and of all before them, so that a later sequence with the same beginning
can take it over. When nobody refers to such a block it stays cached; a block without a key is free
at once. Free blocks are handed out first, then the cached ones, least recently used first: that is
an eviction, and the content is gone.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b

BlockKey = bytes
_KEY_BYTES = 16


def root_key(salt: str) -> BlockKey:
    """What the chain of a sequence begins with: sequences of different salts share nothing."""
    return blake2b(salt.encode(), digest_size=_KEY_BYTES, person=b"octavo-kv").digest()


def chain_key(parent: BlockKey, token_ids: list[int]) -> BlockKey:
    """The key of a full block with `token_ids`, which comes after the block of `parent`.

    128 bits of a cryptographic hash: that two contents meet in one key is out of the question.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=_KEY_BYTES).digest()


class BlockAllocator:
    """Hands out block ids 0 … num_blocks − 1. Every id is free, cached or referenced."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._by_key: dict[BlockKey, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody refers to and whose content is kept."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, each with one reference. The caller has checked `num_free`."""
        assert 0 <= count <= self.num_free, (count, self.num_free)
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each of `blocks`, which must be in use or cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence refers to it, so that none may write to it."""
        return self._references[block] > 1

    def is_cached(self, block: int) -> bool:
        return block in self._cached

    def free(self, blocks: list[int]) -> None:
        """One reference less to each of `blocks`, a sequence's in their order. The last are the
        first to be evicted: without its beginning a content is of no use."""
        for block in reversed(blocks):
            assert self._references[block] > 0, block
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def register(self, block: int, key: BlockKey) -> None:
        """`block` is full and computed: from now on it can be found by `key`. Of equal contents
        the first one registered is found."""
        assert self._references[block] > 0, block
        if self._keys[block] is None and key not in self._by_key:
            self._keys[block] = key
            self._by_key[key] = block

    def find(self, keys: Iterable[BlockKey]) -> Iterator[int]:
        """The blocks of the longest known beginning of `keys`."""
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                return
            yield block

    def check_integrity(self) -> None:
        """Asserts that each block is in exactly one state, and the index matches the keys."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached
        for block, references in enumerate(self._references):
            assert references >= 0
            assert (references == 0) == (block in free or block in cached), (block, references)
            key = self._keys[block]
            assert not (block in free and key is not None) and not (block in cached and not key)
            assert key is None or self._by_key[key] == block
        assert len(self._by_key) == sum(key is not None for key in self._keys)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        key = self._keys[block]
        assert key is not None
        del self._by_key[key]
        self._keys[block] = None
        self.num_evictions += 1
        return block
