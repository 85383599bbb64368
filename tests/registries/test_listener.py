"""A listener serves no connection before it is started."""

from __future__ import annotations

import socket

from tests.registries.listener import Listener


def test_a_client_that_connects_before_the_start_is_served_after_it() -> None:
    served: list[Listener] = []

    def serve(connection: socket.socket, number: int) -> None:
        served.append(listener)  # a NameError if the listener could serve before it has a name
        connection.sendall(b"served")

    listener = Listener(serve, name="early")
    with socket.create_connection(("127.0.0.1", listener.port), 10) as client:
        listener.start()
        assert b"served" == client.recv(16)
    listener.stop()
    assert [listener] == served
