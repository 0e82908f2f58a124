"""Checksums that can be computed in parts and combined: one pass over the bytes is enough.

CRC64NVME is what S3 keeps for whole objects, and awscrt computes it at memory speed; the
CRC32 of zlib stands in where awscrt is missing. Both are written the way S3 writes them,
base64 of the big-endian value, so a manifest can be compared with what
`aws s3api head-object --checksum-mode ENABLED` prints.
"""

from __future__ import annotations

import base64
import functools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Buffer = Union[bytes, bytearray, memoryview]  # noqa: UP007 - evaluated, and 3.10 is meant


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A checksum: `update(data, crc)` goes on from `crc`; `combine(a, b, bytes behind b)`."""

    name: str  # as in S3's header names: crc64nvme, crc32
    width: int  # bytes
    update: Callable[[Buffer, int], int]
    combine: Callable[[int, int, int], int]

    def encode(self, value: int) -> str:
        """Returns S3's text for the value: base64, big-endian."""
        return base64.b64encode(value.to_bytes(self.width, "big")).decode()

    def decode(self, text: str) -> int | None:
        """Returns the value of S3's text, or None when it is not one."""
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            return None
        return int.from_bytes(raw, "big") if len(raw) == self.width else None

    def label(self, value: int) -> str:
        """Returns the manifest's form: `crc64nvme:<base64>`."""
        return f"{self.name}:{self.encode(value)}"

    def join(self, parts: Iterable[tuple[int, int]]) -> int:
        """Returns the checksum of a whole from (checksum, bytes) of its parts in order."""
        total = 0
        for value, length in parts:
            total = self.combine(total, value, length)
        return total


def _times(matrix: list[int], vector: int) -> int:
    total = 0
    for row in matrix:
        if not vector:
            break
        if vector & 1:
            total ^= row
        vector >>= 1
    return total


def combine_crc32(first: int, second: int, length: int) -> int:
    """Returns the CRC32 of two blocks from theirs; `length` is the second's, in bytes.

    A CRC is linear over GF(2): the first CRC is carried over `length` zero bytes by a
    matrix that is squared once for each bit of the length.
    """
    operator = [0xEDB88320, *(1 << bit for bit in range(31))]  # one zero bit
    for _ in range(3):  # two, four, eight: one zero byte
        operator = [_times(operator, row) for row in operator]
    while length:
        if length & 1:
            first = _times(operator, first)
        operator = [_times(operator, row) for row in operator]
        length >>= 1
    return first ^ second


CRC32 = Algorithm("crc32", 4, zlib.crc32, combine_crc32)


@functools.cache
def crc64nvme() -> Algorithm | None:
    """Returns S3's own checksum, or None without awscrt, which takes 40 ms to import."""
    try:
        from awscrt import checksums  # noqa: PLC0415 - only here, so that it may be missing
    except ImportError:
        return None
    if not hasattr(checksums, "combine_crc64nvme"):
        return None
    return Algorithm("crc64nvme", 8, checksums.crc64nvme, checksums.combine_crc64nvme)


def default() -> Algorithm:
    """Returns the checksum that objects are written with."""
    return crc64nvme() or CRC32


def algorithm_of(label: str) -> tuple[Algorithm, int]:
    """Returns (algorithm, value) of a manifest's checksum.

    Raises:
        SpotdError: We cannot compute it here, or it is no checksum.
    """
    name, _, text = label.partition(":")
    for algorithm in (crc64nvme(), CRC32):
        if algorithm is not None and algorithm.name == name:
            value = algorithm.decode(text)
            if value is None:
                break
            return algorithm, value
    raise SpotdError(
        f"the checksum {label!r} cannot be verified here",
        hint="install awscrt (pip install 'boto3[crt]')" if name == "crc64nvme" else "",
    )
