"""The sender that is fast: parts over plain sockets, a megabyte at a time.

What it leaves out makes it fast: no body is held in memory or read twice, nothing is hashed
with SHA-256. A request is signed with botocore's credentials, so that they are
renewed as ever; its payload is not signed but carries its CRC64NVME in a trailer
(`STREAMING-UNSIGNED-PAYLOAD-TRAILER`, S3's API reference, "Signature calculations:
trailing checksums"), computed on each megabyte between reading and sending it. S3 refuses
a part whose checksum is another. `measured.md`, section 7: two to four times botocore's
own throughput at a third of the CPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from spotd.shell.store.access import HEADERS
from spotd.shell.store.aws import CONNECT_TIMEOUT, PROGRESS_TIMEOUT, told
from spotd.shell.store.http1 import Buffers, Pool, Timeouts, head
from spotd.shell.store.problems import answered, element
from spotd.shell.store.protocol import Damaged, Flow, Part, Piece, StoreProblem
from spotd.shell.store.receiving import receive_range
from spotd.shell.store.signing import UNSIGNED, UNSIGNED_TRAILER, Signer
from spotd.shell.store.tls import tls_context
from spotd.shell.store.twin import Lost, Twin

if TYPE_CHECKING:
    from spotd.shell.store.checksum import Algorithm
    from spotd.shell.store.http1 import Connection
    from spotd.shell.store.receiving import Received
    from spotd.shell.store.s3 import S3Store

_CHUNK = 1024 * 1024
_CHUNK_HEAD = b"%X\r\n" % _CHUNK
_OK, _PARTIAL, _RANGE = 200, 206, 416
# Seconds for an answer that came before its request was over: it is there, or there is none, and
# a line on which nothing moves must not be waited for twice.
_EARLY = 0.5
# Bytes to receive over TLS from which on a second process is worth its start.
_WORTH_A_TWIN = 64 * 1024 * 1024


def possible(store: S3Store) -> bool:
    """Whether this sender can reach the store: it does not go through proxies."""
    parts = urlsplit(store.aws.object_url("x"))
    proxies = urllib.request.getproxies()
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return False
    return parts.scheme not in proxies or bool(urllib.request.proxy_bypass(parts.hostname))


class ThinSender:
    """A PartSender over `spotd.shell.store.http1`."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._algorithm = store.algorithm
        self._trailer = f"x-amz-checksum-{store.algorithm.name}"
        parts = urlsplit(store.aws.object_url("x"))
        self._signer = Signer(store.aws.region)
        self._host = parts.netloc
        self._base = parts.path[: -len("x")]
        self._secure = parts.scheme == "https"
        bundle = store.aws.ca_bundle()
        context = tls_context(bundle) if self._secure else None
        port = parts.port or (443 if context else 80)
        timeouts = Timeouts(CONNECT_TIMEOUT, PROGRESS_TIMEOUT)
        self._pool = Pool(str(parts.hostname), port, context, timeouts)
        self._streams = Pool(str(parts.hostname), port, context, timeouts, sends=True)
        self._buffers = Buffers(len(_CHUNK_HEAD) + _CHUNK + 2)
        self._server = (str(parts.hostname), port, bundle, timeouts)
        self._twin: Twin | None = None
        self._twin_failed = False
        self._asked = 0  # bytes
        self._receiving = 0  # ranges under way in this process
        self._lock = threading.Lock()

    def send_whole(self, key: str, piece: Piece, flow: Flow, options: dict[str, Any]) -> Part:
        """See `PartSender.send_whole`."""
        extra = {HEADERS[name]: str(value) for name, value in options.items()}
        return self._put("PutObject", key, "", piece, flow, extra)

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:
        """See `PartSender.send_part`."""
        query = f"partNumber={number}&uploadId={quote(upload, safe='')}"
        return self._put("UploadPart", key, query, piece, flow, {})

    def _put(  # noqa: PLR0917
        self, operation: str, key: str, query: str, piece: Piece, flow: Flow, extra: dict[str, str]
    ) -> Part:  # fmt: skip
        flow.check()
        headers = {
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": str(piece.length),
            "x-amz-trailer": self._trailer,
            **extra,
        }
        request = self._signed("PUT", key, query, headers)
        length = _encoded_length(piece.length, self._trailer, self._algorithm)
        request += f"Content-Length: {length}\r\n\r\n".encode()
        pool = self._streams if piece.length > _CHUNK else self._pool
        with pool.connection(flow) as connection:
            try:
                crc = self._send_request(connection, request, piece, flow)
            except OSError:
                # A server that refuses early says why before it closes.
                self._raise_early(connection, operation, key)
                raise
            answer = connection.answer()
            data = answer.small()
            pool.keep(connection, answer)
        if answer.status != _OK:
            raise self._problem(operation, key, answer.status, data)
        stored = answer.headers.get(self._trailer)
        if stored is not None and stored != self._algorithm.encode(crc):
            raise Damaged(f"{self._store.resource(key)} arrived damaged", retriable=True)
        return Part(told(answer.headers, "etag"), piece.length, crc)

    def _send_request(
        self, connection: Connection, request: bytes, piece: Piece, flow: Flow
    ) -> int:
        if piece.length > _CHUNK:
            connection.send(request)
            return self._send_body(connection, piece, flow)
        # A small file: one system call for all of it.
        data = memoryview(bytearray(piece.length))
        flow.passed(piece.length)
        _read_all(piece.fd, data, piece.offset)
        crc = self._algorithm.update(data, 0)
        end = _trailer_line(self._trailer, self._algorithm, crc)
        if piece.length:
            frame = b"".join((request, b"%X\r\n" % piece.length, data, b"\r\n0\r\n", end))
        else:
            frame = b"".join((request, b"0\r\n", end))
        connection.send(frame)
        return crc

    def _send_body(self, connection: Connection, piece: Piece, flow: Flow) -> int:
        crc, start = 0, len(_CHUNK_HEAD)
        with self._buffers.one() as buffer:
            for offset in range(piece.offset, piece.offset + piece.length, _CHUNK):
                count = min(_CHUNK, piece.offset + piece.length - offset)
                flow.passed(count)
                data = buffer[start : start + count]
                _read_all(piece.fd, data, offset)
                crc = self._algorithm.update(data, crc)
                text = b"%X\r\n" % count
                first = start - len(text)
                buffer[first:start] = text
                buffer[start + count : start + count + 2] = b"\r\n"
                connection.send(buffer[first : start + count + 2])
        connection.send(b"0\r\n" + _trailer_line(self._trailer, self._algorithm, crc))
        return crc

    def _raise_early(self, connection: Connection, operation: str, key: str) -> None:
        try:
            connection.sock.settimeout(_EARLY)
            answer = connection.answer()
            data = answer.small()
        except OSError:
            return
        if answer.status != _OK:
            raise self._problem(operation, key, answer.status, data)

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """See `PartSender.receive`."""
        if piece.length == 0:
            return 0
        flow.check()
        last = piece.offset + piece.length - 1
        request = self._signed("GET", key, "", {"Range": f"bytes={piece.offset}-{last}"}) + b"\r\n"
        found = self._receive(request, piece, flow, algorithm)
        if found.crc is not None:
            return found.crc
        if found.status in {_OK, _PARTIAL}:
            raise Damaged(f"{self._store.resource(key)} has not the size it should have")
        raise self._problem("GetObject", key, found.status, found.text)

    def _receive(self, request: bytes, piece: Piece, flow: Flow, algorithm: Algorithm) -> Received:
        twin = self._twin_for(piece)
        if twin is not None:
            with contextlib.suppress(Lost):
                return twin.receive(request, piece, flow, algorithm)
        with self._lock:
            self._receiving += 1
        try:
            return receive_range(self._pool, self._buffers, request, piece, flow, algorithm)
        finally:
            with self._lock:
                self._receiving -= 1

    def _twin_for(self, piece: Piece) -> Twin | None:
        """The twin where it has less to do than this process, and the range is worth it."""
        if not self._secure or piece.length < _CHUNK or (os.cpu_count() or 1) == 1:
            return None
        with self._lock:
            self._asked += piece.length
            if self._asked < _WORTH_A_TWIN:
                return None
            if self._twin is None and not self._twin_failed:
                try:
                    self._twin = Twin(*self._server)
                except OSError:
                    self._twin_failed = True  # no memory, no processes: this one does it all
            if self._twin is not None and self._twin.over:
                self._twin = None  # stopped with its transfer, or killed: the next range asks anew
            twin, busy = self._twin, self._receiving
        free = None if twin is None else twin.free
        return twin if free is not None and free < busy else None

    def close(self) -> None:
        """See `PartSender.close`."""
        self._pool.close()
        self._streams.close()
        with self._lock:
            twin, self._twin, self._twin_failed = self._twin, None, True
        if twin is not None:
            twin.kill()

    def _signed(self, method: str, key: str, query: str, headers: dict[str, str]) -> bytes:
        """Returns request line and headers, signed, without the empty line at the end."""
        path = self._base + quote(self._store.key(key), safe="/-_.~")
        payload = UNSIGNED_TRAILER if method == "PUT" else UNSIGNED
        signed = self._signer.sign(
            method, (self._host, path, query), headers, self._store.aws.credentials(), payload
        )
        return head(method, f"{path}?{query}" if query else path, signed)[:-2]

    def _problem(self, operation: str, key: str, status: int, data: bytes) -> StoreProblem:
        text = data.decode(errors="replace")
        code = element(text, "Code") or str(status)
        if status == _RANGE:
            return Damaged(f"{self._store.resource(key)} has not the size it should have")
        problem = answered(operation, code, element(text, "Message"), self._store.resource(key))
        self._store.aws.noticed(problem)
        return problem


def _encoded_length(length: int, trailer: str, algorithm: Algorithm) -> int:
    """Returns the length of a body in aws-chunked form."""
    full, rest = divmod(length, _CHUNK)
    total = full * (len(_CHUNK_HEAD) + _CHUNK + 2)
    if rest:
        total += len(b"%X\r\n" % rest) + rest + 2
    return total + 3 + len(_trailer_line(trailer, algorithm, 0))


def _trailer_line(trailer: str, algorithm: Algorithm, crc: int) -> bytes:
    return f"{trailer}:{algorithm.encode(crc)}\r\n\r\n".encode()


def _read_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.preadv(fd, [data], offset)
        if count == 0:
            raise Damaged("the file became shorter while it was being sent")
        data = data[count:]
        offset += count
