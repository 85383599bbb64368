"""A TCP relay to a port of 127.0.0.1 that adds a delay but does not limit the bandwidth."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self

_BLOCK = 1 << 16
_WINDOW = 256  # blocks in transit in one direction of a connection: 16 MiB, more than a connection has in transit


class DelayProxy:
    """A context manager that relays connections to a port, and adds a delay until the `with` block exits.

    port: the port of 127.0.0.1 to which connections are relayed. seconds: the round-trip time; half of it is added in
    each direction. To simulate the TCP handshake, the first bytes of the client on a new connection are delayed by one
    more round trip."""

    def __init__(self, port: int, seconds: float) -> None:
        self._upstream, self._seconds = port, seconds
        self.port = 0
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="delay")

    @property
    def host(self) -> str:
        """The `host:port` that clients connect to."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the delay proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop and self._end:
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self) -> None:
        """Accept connections until the `with` block exits, then close all of them."""
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._end.wait()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection in both directions until it ends."""
        relay = asyncio.current_task()
        if relay:
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)
        back: asyncio.StreamWriter | None = None
        try:
            answers, back = await asyncio.open_connection("127.0.0.1", self._upstream)
            await asyncio.gather(
                self._carry(reader, back, handshake=self._seconds),
                self._carry(answers, writer),
            )
        except (OSError, asyncio.CancelledError):
            pass  # the client or the server closed the connection, or the `with` block exits
        finally:
            for end in (writer, back):
                if end:
                    end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, handshake: float = 0) -> None:
        """Relay one direction of a connection until the sender closes it.

        handshake: additional seconds by which the first bytes are delayed."""
        clock = asyncio.get_running_loop().time
        underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WINDOW)

        async def deliver() -> None:
            """Write each block when it is due."""
            while True:
                due, data = await underway.get()
                await asyncio.sleep(due - clock())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            with suppress(OSError):
                writer.write_eof()

        opened = clock() + handshake
        delivery = asyncio.create_task(deliver())
        try:
            while True:
                data = await reader.read(_BLOCK)
                await underway.put((max(clock(), opened) + self._seconds / 2, data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()
