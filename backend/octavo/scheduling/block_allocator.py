"""Fixed-size blocks of KV memory, reference-counted.

    block id          0    1    2    3    4    5
    reference count   1    2    0    1    0    0        free: 5 4 2 (taken from the right)
                      A   A,B        B

Sequence A holds blocks 0 and 1, B holds 1 and 3; block 1 is shared and becomes free when both
have given it back.
"""


class BlockAllocator:
    """Hands out block ids 0 … num_blocks − 1. Every id is either free or referenced."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks, each with one reference. The caller has checked `num_free`."""
        assert 0 <= count <= len(self._free), (count, len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: list[int]) -> None:
        """One more reference to each of `blocks`, which must be in use."""
        for block in blocks:
            assert self._references[block] > 0, block
            self._references[block] += 1

    def free(self, blocks: list[int]) -> None:
        """One reference less to each of `blocks`."""
        for block in reversed(blocks):
            assert self._references[block] > 0, block
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def check_integrity(self) -> None:
        """Asserts that each block is free exactly when nothing refers to it."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        for block, references in enumerate(self._references):
            assert references >= 0 and (references == 0) == (block in free), (block, references)
