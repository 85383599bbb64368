"""A TCP relay to a port of 127.0.0.1 that adds a delay but does not limit the bandwidth."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self

_BLOCK = 1 << 16
_WINDOW = 256  # blocks in transit in one direction of a connection: 16 MiB, more than any of them sends


class DelayProxy:
    """A relay; use with `with`. seconds: the round-trip time, half of which is added in each direction.

    A new connection is delayed by one more round trip, as by its TCP handshake: the first bytes of the client are held
    back."""

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
            pass  # an end closed the connection, or the relay ends
        finally:
            for end in (writer, back):
                if end:
                    end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, handshake: float = 0) -> None:
        """Relay one direction until its end."""
        clock = asyncio.get_running_loop().time
        underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WINDOW)

        async def deliver() -> None:
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
