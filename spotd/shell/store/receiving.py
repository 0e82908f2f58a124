"""One range of an object into its place in a file, over one connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.store.directory import pwrite_all

if TYPE_CHECKING:
    from spotd.shell.store.checksum import Algorithm
    from spotd.shell.store.http1 import Answer, Buffers, Pool
    from spotd.shell.store.protocol import Flow, Piece

CHUNK = 1024 * 1024
_OK, _PARTIAL = 200, 206


@dataclass(frozen=True, slots=True)
class Received:
    """How it went: the checksum of what was written, or else what the server said.

    Attributes:
        crc: Of the range; None when it did not come.
        status: The answer's.
        text: Its body, when it was no data.
    """

    crc: int | None
    status: int
    text: bytes = b""


def receive_range(  # noqa: PLR0917 - all of it is needed
    pool: Pool, buffers: Buffers, request: bytes, piece: Piece, flow: Flow, algorithm: Algorithm
) -> Received:
    """Sends a signed request for a range and writes the answer to the file.

    Args:
        pool: Where the connection comes from.
        buffers: Of a CHUNK or more.
        request: Head of the request, as it goes over the wire.
        piece: Where the bytes belong; the request asks for the same range.
        flow: How to stop it.
        algorithm: Of the checksum.

    Returns:
        `crc` None with a good status: the object has not the size it should have.

    Raises:
        StoreProblem: No connection, or it broke.
    """
    with pool.connection(flow) as connection:
        connection.send(request)
        answer = connection.answer()
        whole = answer.status == _OK and piece.offset == 0
        if answer.status != _PARTIAL and not whole:
            return Received(None, answer.status, answer.small())
        if answer.length != piece.length:
            return Received(None, _PARTIAL)
        crc = _body(answer, buffers, piece, flow, algorithm)
        pool.keep(connection, answer)
    return Received(crc, answer.status)


def _body(answer: Answer, buffers: Buffers, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
    crc, offset, end = 0, piece.offset, piece.offset + piece.length
    small = piece.length < CHUNK  # there may be many of them at once
    lent = memoryview(bytearray(piece.length)) if small else buffers.one()
    with lent as buffer:
        while offset < end:
            count = answer.readinto(buffer[:CHUNK])
            flow.passed(count)
            crc = algorithm.update(buffer[:count], crc)
            pwrite_all(piece.fd, buffer[:count], offset)
            offset += count
    return crc
