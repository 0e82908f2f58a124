"""A second process that receives over TLS, beside the one that asks for it.

Python decrypts one record of 16 KiB at a time and takes its lock for each, so one process
does 0.7 GB/s however many threads it has. The twin gets requests that are signed already and
the file to write to: it holds no credentials, imports no botocore, and is there in a tenth of
a second. Without it everything still works, in the process that asks.

Messages go over a socket that keeps their bounds (SOCK_SEQPACKET), the file's descriptor
with them (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from spotd.shell.store.checksum import algorithm_of
from spotd.shell.store.http1 import Buffers, Pool, Timeouts
from spotd.shell.store.protocol import Flow, Piece, StoreProblem
from spotd.shell.store.receiving import CHUNK, Received, receive_range
from spotd.shell.store.tls import tls_context

if TYPE_CHECKING:
    from spotd.shell.store.checksum import Algorithm

_MESSAGE = 64 * 1024  # bytes; a signed request has two or three KiB
_THREADS = 32


class Lost(Exception):  # noqa: N818 - what happened to it
    """The twin is gone; whatever it was doing may be done again."""


class _Waiting:
    """One request under way."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: dict[str, Any] | None = None


class Twin:
    """The parent's side; any thread may call.

    Args:
        host: Of the server.
        port: Of the server.
        bundle: File of trusted authorities; "" for the system's.
        timeouts: As in this process.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, host: str, port: int, bundle: str | None, timeouts: Timeouts) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    [sys.executable, "-m", "spotd.shell.store.twin", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", env=environment,
                )  # fmt: skip
            except OSError:
                self._socket.close()
                raise
        begin = [host, port, bundle, timeouts.connect, timeouts.progress]
        self._socket.send(json.dumps(begin).encode())
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = 0
        self._ready = self._over = False
        threading.Thread(target=self._listen, name="twin", daemon=True).start()

    @property
    def free(self) -> int | None:
        """How many requests it has, None when it is not there (yet, or any more)."""
        with self._lock:
            return len(self._waiting) if self._ready and not self._over else None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def receive(self, request: bytes, piece: Piece, flow: Flow, algorithm: Algorithm) -> Received:
        """As `receive_range`; when the flow is stopped, nothing is written any more.

        Raises:
            StoreProblem: As there.
            Lost: The twin has ended.
        """
        waiting = _Waiting()
        with flow.watching(self.kill):
            with self._lock:
                if self._over:
                    raise Lost
                self._numbers += 1
                number = self._numbers
                self._waiting[number] = waiting
            head = [number, piece.offset, piece.length, algorithm.label(0), request.decode()]
            try:
                socket.send_fds(self._socket, [json.dumps(head).encode()], [piece.fd])
            except OSError:
                self.kill()
            waiting.done.wait()
        with self._lock:
            self._waiting.pop(number, None)
        answer = waiting.answer
        if answer is None:
            flow.check()
            raise Lost
        if "problem" in answer:
            raise StoreProblem(answer["problem"], hint=answer["hint"], retriable=answer["again"])
        if answer["crc"] is not None:
            flow.passed(piece.length)
        return Received(answer["crc"], answer["status"], answer["text"].encode())

    def kill(self) -> None:
        """Ends it at once, whatever it does; returns when it writes nothing any more."""
        self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(2.0)
        self._end()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := self._socket.recv(_MESSAGE):
                answer = json.loads(data)
                with self._lock:
                    self._ready = True
                    waiting = self._waiting.get(answer.get("number"))
                if waiting is not None:
                    waiting.answer = answer
                    waiting.done.set()
        self.kill()
        self._socket.close()

    def _end(self) -> None:
        with self._lock:
            self._over = True
            left = list(self._waiting.values())
        for waiting in left:
            waiting.done.set()


# --- the twin itself: `python -m spotd.shell.store.twin FD` -----------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Serves its parent until that is gone."""
    number = int((sys.argv[1:] if arguments is None else arguments)[0])
    parent = socket.socket(fileno=number)
    host, port, bundle, connect, progress = json.loads(parent.recv(_MESSAGE))
    pool = Pool(host, port, tls_context(bundle), Timeouts(connect, progress))
    buffers, flow = Buffers(CHUNK), Flow()
    parent.send(b'{"number": 0}')
    with ThreadPoolExecutor(_THREADS, "receive") as threads:
        while True:
            data, descriptors, _, _ = socket.recv_fds(parent, _MESSAGE, 1)
            if not data:
                os._exit(0)  # nobody is left to say it to
            threads.submit(_carry_out, parent, pool, buffers, flow, json.loads(data), descriptors)


def _carry_out(  # noqa: PLR0917 - a thread's arguments
    parent: socket.socket,
    pool: Pool,
    buffers: Buffers,
    flow: Flow,
    job: list[Any],
    descriptors: list[int],
) -> None:
    number, offset, length, label, request = job
    answer: dict[str, Any]
    try:
        piece = Piece(descriptors[0], offset, length)
        found = receive_range(pool, buffers, request.encode(), piece, flow, algorithm_of(label)[0])
        text = found.text.decode(errors="replace")[:16000]
        answer = {"crc": found.crc, "status": found.status, "text": text}
    except StoreProblem as problem:
        answer = {"problem": problem.message, "hint": problem.hint, "again": problem.retriable}
    except OSError as error:
        answer = {"problem": f"cannot write: {error.strerror}", "hint": "", "again": False}
    except BaseException:  # noqa: BLE001 - no memory, say: the parent must not wait for ever
        traceback.print_exc()
        os._exit(1)  # all that was under way is Lost, and done by the parent
    finally:
        for each in descriptors:
            os.close(each)
    with contextlib.suppress(OSError):
        parent.send(json.dumps({"number": number, **answer}).encode())


if __name__ == "__main__":
    main()
