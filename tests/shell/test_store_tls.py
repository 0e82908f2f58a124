"""Large bodies over TLS: whom it trusts, and that stopping it never falls back to clear text."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

import pytest

from spotd.shell.store.http1 import Connection, Pool, Timeouts
from spotd.shell.store.protocol import Flow, StoreProblem
from spotd.shell.store.tls import TlsSocket, tls_context


def pool_for(server, bundle):
    parts = urlsplit(server.tls_endpoint_url)
    return Pool(parts.hostname, parts.port, tls_context(bundle), Timeouts(3.0, 10.0), sends=True)


@pytest.fixture
def server(seaweed):
    if seaweed.certificate is None:
        pytest.skip("needs openssl for a certificate")
    return seaweed


def test_a_request_and_its_answer_go_over_tls(server):
    pool = pool_for(server, str(server.certificate))
    with pool.connection(Flow()) as connection:
        connection.send(b"GET /no-such-bucket HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.answer().status in {403, 404}
        assert connection.sock.version().startswith("TLS")


def test_a_stopped_connection_is_over_and_still_tls(server):
    pool = pool_for(server, str(server.certificate))
    with pytest.raises(StoreProblem), pool.connection(Flow()) as connection:  # noqa: PT012
        connection.interrupt()  # as from another thread, in the middle of a send
        # SSLSocket.shutdown would have it None here: what is sent next goes out in the clear.
        assert connection.sock.version() is not None
        connection.send(bytes(4 * 1024 * 1024))


def test_an_authority_nobody_named_is_not_trusted(server):
    with (
        pytest.raises(StoreProblem, match="certificate") as caught,
        pool_for(server, None).connection(Flow()),
    ):
        pytest.fail("it was trusted")
    assert caught.value.hint


def test_another_hosts_certificate_is_not_trusted(server):
    parts = urlsplit(server.tls_endpoint_url)
    context = tls_context(str(server.certificate))
    pool = Pool("127.0.0.1", parts.port, context, Timeouts(3.0, 10.0), sends=True)
    with (
        pytest.raises(StoreProblem, match="certificate"),
        pool.connection(Flow()),
    ):
        pytest.fail("it was trusted")


def ends_of_a_line(certificate, **options):
    """What makes our end of a connection over TLS, and what makes the other, in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    for name, value in options.items():
        setattr(context, name, value)
    ours, theirs = connected_pair()

    def secured(*, receives=False):
        trusted = tls_context(str(certificate[0]))
        if receives:
            ours.settimeout(0.5)
            return Connection(TlsSocket(ours, trusted, "localhost"), Timeouts(3.0, 0.5))
        return Connection(
            trusted.wrap_socket(ours, server_hostname="localhost"), Timeouts(3.0, 0.5)
        )

    return secured, lambda: context.wrap_socket(theirs, server_side=True)


def connected_pair():
    """Two ends of a connection that buffers little."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        ours.connect(listening.getsockname())
        return ours, listening.accept()[0]


def test_a_line_on_which_nothing_moves_is_dead(certificate):
    connect, accept = ends_of_a_line(certificate)
    over = threading.Event()

    def never_read():
        with accept():
            over.wait(30)

    peer = threading.Thread(target=never_read, daemon=True)
    peer.start()
    connection = connect()
    with pytest.raises(TimeoutError):
        connection.send(bytes(8 * 1024 * 1024))
    connection.close()
    over.set()
    peer.join(30)


def test_a_line_that_is_only_slow_is_not_taken_for_dead(certificate):
    """Bytes move all the time, but a megabyte takes longer than nothing may move."""
    connect, accept = ends_of_a_line(certificate)
    received = []

    def read_slowly():
        with accept() as peer:
            while data := peer.recv(16 * 1024):
                received.append(len(data))
                time.sleep(0.02)  # the line's pace: 0.8 MB/s

    reader = threading.Thread(target=read_slowly, daemon=True)
    reader.start()
    connection = connect()  # nothing may move for 0.5 s; a megabyte takes 1.3
    connection.send(bytes(1024 * 1024))
    connection.interrupt()
    reader.join(30)
    connection.close()
    assert sum(received) == 1024 * 1024


def answering(accept, body, then, length=1_000_000):
    """Answers with so many bytes, of which `body` yields some; then does `then` with the line."""

    def answer():
        with accept() as peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            for data in body:
                peer.sendall(data)
            then(peer)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return thread


def test_a_large_answer_arrives_as_it_was_sent(certificate):
    connect, accept = ends_of_a_line(certificate)
    content = os.urandom(3_000_001)
    peer = answering(accept, [content], lambda _: None, len(content))
    answer = connect(receives=True).answer()
    got = bytearray(len(content))
    with memoryview(got) as view:
        assert answer.readinto(view) == len(content)
    peer.join(30)
    assert got == content
    assert answer.reusable


def test_an_answer_that_comes_slowly_is_waited_for(certificate):
    connect, accept = ends_of_a_line(certificate)

    def slowly():
        for _ in range(20):
            time.sleep(0.05)  # the line's pace: 20 kB/s; nothing may move for 0.5 s
            yield bytes(1000)

    peer = answering(accept, slowly(), lambda _: None, 20_000)
    connection = connect(receives=True)
    with memoryview(bytearray(20_000)) as view:
        assert connection.answer().readinto(view) == 20_000
    peer.join(30)


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (lambda peer: peer.unwrap(), ConnectionError),
        (lambda peer: peer.shutdown(socket.SHUT_RDWR), ConnectionError),
        (lambda peer: peer.recv(1), TimeoutError),
    ],
    ids=["closed", "cut", "silent"],
)
def test_an_answer_that_breaks_off_is_none(certificate, then, error):
    connect, accept = ends_of_a_line(certificate)

    def quietly(peer):
        with contextlib.suppress(OSError):
            then(peer)

    peer = answering(accept, [bytes(300_000)], quietly)
    connection = connect(receives=True)
    answer = connection.answer()
    with memoryview(bytearray(1_000_000)) as view, pytest.raises(error):
        answer.readinto(view)
    connection.close()
    peer.join(30)


def test_a_refusal_is_read_before_the_reset_that_follows_it(certificate):
    connect, accept = ends_of_a_line(certificate, num_tickets=0)
    arrived, refused = threading.Event(), threading.Event()

    def refuse():
        peer = accept()
        peer.recv(100)  # of a request that is longer
        peer.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nerror")
        assert arrived.wait(30)
        socket.socket.close(peer)  # with what was not read: a reset
        refused.set()

    server = threading.Thread(target=refuse, daemon=True)
    server.start()
    connection = connect(receives=True)
    connection.send(bytes(30_000))  # two records, of which it reads one
    assert select.select([connection.sock.fileno()], [], [], 30)[0]
    arrived.set()
    assert refused.wait(30)
    server.join(30)
    answer = connection.answer()
    assert (answer.status, answer.small()) == (403, b"error")
    connection.close()
