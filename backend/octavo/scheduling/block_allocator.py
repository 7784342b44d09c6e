"""Fixed-size blocks of KV memory: reference-counted, and kept for reuse after their last user.

    block id          0     1     2     3     4     5
    reference count   1     2     0     1     0     0
    key               k0    k1    k2    -     -     -
    state             A     A,B   cached B    free  free      hand-out order: 5 4, then 2

Sequence A holds blocks 0 and 1, B holds 1 and 3. A block with a key has a known content: its
tokens, and all before them, are what the key is a hash of, so that a later sequence with the same
beginning can take it over. When nobody refers to such a block it stays cached; a block without a
key is free at once. Free blocks are handed out first, then the cached ones, least recently used
first: that is an eviction. Who owns the allocator is told of each, and may save the content before
the step writes over it.
"""

import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal, NamedTuple

from octavo.stats import Histogram

BlockKey = bytes
_KEY_BYTES = 16

EvictionCause = Literal["admission", "decode", "copy"]  # what the evicted block is needed for
NO_BLOCK = -1  # in a block table: given back, for no later token attends to it

# One block in so many is timed, from when it is taken to when its content is given up.
_SAMPLED_EVERY = 16
BLOCK_AGE_BUCKETS_S = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class BlockContent(NamedTuple):
    """What a block holds, or will: the tokens, and the hash of these and of all before them."""

    key: BlockKey
    token_ids: tuple[int, ...]


def root_key(namespace: bytes, salt: str) -> BlockKey:
    """What the chain of a sequence begins with: sequences of different salts share nothing, nor do
    engines of different namespaces, which name the model and the format of its KV memory."""
    digest = blake2b(salt.encode(), digest_size=_KEY_BYTES, key=namespace, person=b"octavo-kv")
    return digest.digest()


def chain_key(parent: BlockKey, token_ids: tuple[int, ...]) -> BlockKey:
    """The key of a block with `token_ids`, which comes after the block of `parent`.

    128 bits of a cryptographic hash, so that two contents never meet in one key by accident.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=_KEY_BYTES).digest()


class BlockAllocator:
    """Hands out block ids 0 … num_blocks − 1. Every id is free, cached or referenced."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictions: Counter[EvictionCause] = Counter()
        self.held_in_vain_block_s = 0.0  # seconds that evicted blocks lay cached, all together
        self.lifetime_s = Histogram(BLOCK_AGE_BUCKETS_S)  # taken → content given up
        self.idle_before_eviction_s = Histogram(BLOCK_AGE_BUCKETS_S)  # last user gone → evicted
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._contents: list[BlockContent | None] = [None] * num_blocks
        self._by_key: dict[BlockKey, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._evicted: list[tuple[int, BlockKey]] = []  # since the last take_evicted
        # Keys of contents that are gone, as many as there are blocks, the oldest first.
        self._forgotten: OrderedDict[BlockKey, None] = OrderedDict()
        self._num_taken = 0
        self._taken_at_s: dict[int, float] = {}  # of the blocks that are timed
        self._cached_at_s = [0.0] * num_blocks  # of those that are cached

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

    def allocate(self, count: int, cause: EvictionCause = "admission") -> list[int]:
        """`count` blocks, each with one reference. The caller has checked `num_free`."""
        assert 0 <= count <= self.num_free, (count, self.num_free)
        taken = [self._free.pop() if self._free else self._evict(cause) for _ in range(count)]
        for block in taken:
            self._references[block] = 1
            self._num_taken += 1
            if self._num_taken % _SAMPLED_EVERY == 0:
                self._taken_at_s[block] = time.monotonic()
        return taken

    def share(self, blocks: Iterable[int]) -> float:
        """One more reference to each of `blocks`, which must be in use or cached. Returns for how
        long those lay cached that were, in seconds, all together."""
        now_s, held_block_s = time.monotonic(), 0.0
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
                held_block_s += now_s - self._cached_at_s[block]
            self._references[block] += 1
        return held_block_s

    def num_references(self, block: int) -> int:
        return self._references[block]

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence refers to it, so that none may write to it."""
        return self._references[block] > 1

    def is_cached(self, block: int) -> bool:
        return block in self._cached

    def free(self, blocks: list[int]) -> None:
        """One reference less to each of `blocks`, a sequence's in their order. The last are the
        first to be evicted: without its beginning a content is of no use."""
        now_s = time.monotonic()
        for block in reversed(blocks):
            assert self._references[block] > 0, block
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._contents[block] is None:
                    self._free.append(block)
                    self._observe_end(block)
                else:
                    self._cached[block] = None
                    self._cached_at_s[block] = now_s

    def register(self, block: int, content: BlockContent) -> None:
        """`block` is computed: from now on it can be found by its content. Of equal contents the
        first one registered is found."""
        assert self._references[block] > 0, block
        if self._contents[block] is None and content.key not in self._by_key:
            self._contents[block] = content
            self._by_key[content.key] = block
            self._forgotten.pop(content.key, None)

    def unregister(self, block: int) -> None:
        """`block`, which is in use, is found no more: it will be written to."""
        assert self._references[block] > 0, block
        if (content := self._contents[block]) is not None:
            self.forget(content)

    def forget(self, content: BlockContent) -> None:
        """No block is found by `content` any more; one that only that has kept is free."""
        block = self.find(content)
        if block is None:
            return
        self._contents[block] = None
        del self._by_key[content.key]
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)
            self._observe_end(block)

    def find(self, content: BlockContent) -> int | None:
        """The block that holds `content`. A block of the same key and other tokens is not it."""
        block = self._by_key.get(content.key)
        return block if block is not None and self._contents[block] == content else None

    def was_evicted(self, key: BlockKey) -> bool:
        """Whether its content was here not long ago: as many evictions as there are blocks."""
        return key in self._forgotten

    def take_evicted(self) -> list[tuple[int, BlockKey]]:
        """Blocks evicted since the last call, with the key of what they still hold: until the
        next step writes to them."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def kept(self) -> list[tuple[int, BlockKey]]:
        """All blocks of known content, those in use first, then the most recently used."""
        cached = list(reversed(self._cached))
        used = [block for block in self._by_key.values() if block not in self._cached]
        contents = ((block, self._contents[block]) for block in used + cached)
        return [(block, content.key) for block, content in contents if content is not None]

    def check_integrity(self) -> None:
        """Asserts that each block is in exactly one state, and the index matches the contents."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached
        for block, references in enumerate(self._references):
            assert references >= 0
            assert (references == 0) == (block in free or block in cached), (block, references)
            content = self._contents[block]
            assert content is None or self._by_key[content.key] == block
            assert content is None or block not in free
            assert content is not None or block not in cached
        assert len(self._by_key) == sum(content is not None for content in self._contents)
        assert len(self._forgotten) <= self.num_blocks
        assert not self._forgotten.keys() & self._by_key.keys()

    def _evict(self, cause: EvictionCause) -> int:
        block, _ = self._cached.popitem(last=False)
        content, self._contents[block] = self._contents[block], None
        assert content is not None
        del self._by_key[content.key]
        self._evicted.append((block, content.key))
        self._forgotten[content.key] = None
        if len(self._forgotten) > self.num_blocks:
            self._forgotten.popitem(last=False)
        self.evictions[cause] += 1
        self.held_in_vain_block_s += time.monotonic() - self._cached_at_s[block]
        self._observe_end(block, is_evicted=True)
        return block

    def _observe_end(self, block: int, *, is_evicted: bool = False) -> None:
        taken_at_s = self._taken_at_s.pop(block, None)
        if taken_at_s is None:
            return
        now_s = time.monotonic()
        self.lifetime_s.observe(now_s - taken_at_s)
        if is_evicted:
            self.idle_before_eviction_s.observe(now_s - self._cached_at_s[block])
