"""Who moves the bytes of parts between a file and S3.

Two senders do: `spotd.shell.store.thin` (the default) and botocore's own transfer, slower
but always there, below. Both compute the checksum in the pass that reads the file, so a
part is read once.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Protocol

from spotd.shell.store.aws import told
from spotd.shell.store.directory import pwrite_all
from spotd.shell.store.protocol import Damaged, Flow, Part, Piece
from spotd.shell.store.thin import ThinSender, possible

if TYPE_CHECKING:
    from spotd.shell.store.checksum import Algorithm
    from spotd.shell.store.s3 import S3Store

_BUFFER = 1024 * 1024


class PartSender(Protocol):
    """Synchronous, called from many threads at once, raises StoreProblem and Cancelled."""

    def send_whole(self, key: str, piece: Piece, flow: Flow, options: dict[str, Any]) -> Part:
        """PutObject; `options` by their API names."""
        ...

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:
        """UploadPart."""
        ...

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """GetObject of a range, into its place; returns the checksum."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...


def choose_sender(store: S3Store) -> PartSender:
    """Returns the fastest sender that works with this store."""
    return ThinSender(store) if possible(store) else BotocoreSender(store)


class BotocoreSender:
    """Moves parts with botocore's own HTTP client."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def send_whole(self, key: str, piece: Piece, flow: Flow, options: dict[str, Any]) -> Part:
        """See `PartSender.send_whole`."""
        store = self._store
        body: Any = PieceReader(piece, flow, store.algorithm)
        answer = store.aws.call(
            "PutObject", store.resource(key), lambda: store.aws.client.put_object(
                Bucket=store.bucket, Key=store.key(key), Body=body, ContentLength=piece.length,
                ChecksumAlgorithm=store.algorithm.name.upper(),  # type: ignore[arg-type]
                **options,
            ),
        )  # fmt: skip
        return self._part(key, body, answer)

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:
        """See `PartSender.send_part`."""
        store = self._store
        body: Any = PieceReader(piece, flow, store.algorithm)
        answer = store.aws.call(
            "UploadPart", store.resource(key), lambda: store.aws.client.upload_part(
                Bucket=store.bucket, Key=store.key(key), UploadId=upload, PartNumber=number,
                Body=body, ContentLength=piece.length,
                ChecksumAlgorithm=store.algorithm.name.upper(),  # type: ignore[arg-type]
            ),
        )  # fmt: skip
        return self._part(key, body, answer)

    def _part(self, key: str, body: PieceReader, answer: Any) -> Part:
        algorithm = self._store.algorithm
        stored = answer.get(f"Checksum{algorithm.name.upper()}")
        if stored is not None and stored != algorithm.encode(body.crc):
            raise Damaged(f"{self._store.resource(key)} arrived damaged", retriable=True)
        return Part(told(answer, "ETag"), body.length, body.crc)

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """See `PartSender.receive`."""

        def read() -> int:
            crc, offset = 0, piece.offset
            answer = self._store.aws.client.get_object(
                Bucket=self._store.bucket,
                Key=self._store.key(key),
                Range=f"bytes={piece.offset}-{piece.offset + piece.length - 1}",
            )
            with answer["Body"] as body:
                while chunk := body.read(_BUFFER):
                    flow.passed(len(chunk))
                    if offset + len(chunk) > piece.offset + piece.length:
                        break
                    crc = algorithm.update(chunk, crc)
                    pwrite_all(piece.fd, memoryview(chunk), offset)
                    offset += len(chunk)
            if offset != piece.offset + piece.length:
                raise Damaged(f"{self._store.resource(key)} has not the size it should have")
            return crc

        if piece.length == 0:
            return 0
        return self._store.aws.call("GetObject", self._store.resource(key), read)

    def close(self) -> None:
        """The connections are the store's."""


class PieceReader(io.RawIOBase):
    """A piece of a file as botocore wants a body: readable, seekable, of its own length.

    Over plain HTTP botocore reads a body twice, to sign it and to send it; the checksum is
    that of the last pass, the one that was sent.
    """

    def __init__(self, piece: Piece, flow: Flow, algorithm: Algorithm) -> None:
        super().__init__()
        self.length = piece.length
        self.crc = 0
        self._piece = piece
        self._flow = flow
        self._algorithm = algorithm
        self._at = 0
        self._hashed = 0

    def readable(self) -> bool:
        """See `io.RawIOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase.seekable`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase.tell`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        self._at = base + offset
        if self._at == 0:
            self._flow.unpassed(self._hashed)
            self.crc = self._hashed = 0
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """See `io.RawIOBase.read`."""
        left = self.length - self._at
        count = left if size is None or size < 0 else min(size, left)
        if count == 0:
            return b""
        self._flow.passed(count)
        data = os.pread(self._piece.fd, count, self._piece.offset + self._at)
        if not data:
            raise Damaged("the file became shorter while it was being sent")
        if self._at == self._hashed:
            self.crc = self._algorithm.update(data, self.crc)
            self._hashed += len(data)
        self._at += len(data)
        return data
