"""What goes with a block's bytes outside this process: whose they are, how long, a checksum.

    bytes 0-7    magic and version      24-39  key             48-51  crc32 of the block
          8-23   hash of the namespace  40-47  length          52-63  zeros

A reader makes the header anew from the bytes it got and the key it asked for, and compares: so a
fault anywhere, in the header too, is seen.
"""

import struct
import zlib
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.uint8]
Keys = Sequence[bytes]

_MAGIC = b"octavo\x00\x01"
_HEADER = struct.Struct("<8s16s16sQI12x")
HEADER_BYTES = _HEADER.size
KEY_BYTES = 16


class Envelope:
    """Of blocks of one namespace, which all have one length."""

    def __init__(self, namespace: bytes, block_bytes: int) -> None:
        self.namespace = blake2b(namespace, digest_size=16).digest()
        self.block_bytes = block_bytes
        self.size_bytes = HEADER_BYTES + block_bytes

    def header(self, key: bytes, row: Row) -> bytes:
        assert row.nbytes == self.block_bytes and len(key) == KEY_BYTES
        return _HEADER.pack(_MAGIC, self.namespace, key, row.nbytes, zlib.crc32(row.data))
