"""Sends a reply completely, or as a fault says: truncated at a byte, reset, stalled, slow."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from tests.registries.exchange import Reply
from tests.registries.faults import FOREVER, Fault
from tests.registries.http1 import head_bytes
from tests.registries.listener import abort, reset

_TICK = 0.02  # seconds between two checks whether the server stops, or between two bytes of a slow reply
_HINT = b"HTTP/1.1 103 Early Hints\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends on one connection. stopping: set when the server stops, which ends every wait."""

    connection: socket.socket
    stopping: threading.Event

    def send(self, reply: Reply, *, bodiless: bool, fault: Fault | None) -> bool:
        """Send a reply. Return whether the connection can be used again."""
        head, body = head_bytes(reply), b"" if bodiless else reply.body
        if fault is None:
            self.connection.sendall(head + body)
            return True
        if fault.says_nothing:
            return self.cut(fault)
        if fault.informational and not self._informational(fault.informational):
            return False
        if fault.raw is not None:
            self.connection.sendall(fault.raw)
            return self.cut(fault)
        whole = head + body
        end = _end(fault, len(head), len(whole))
        self._paced(whole[:end], len(head), fault)
        return self.cut(fault) if end is not None else True

    def cut(self, fault: Fault | None = None) -> bool:
        """Close the connection, with RST if the fault says so."""
        if fault and fault.reset:
            reset(self.connection)
        else:
            abort(self.connection)
        return False

    def pause(self, seconds: float) -> None:
        self.stopping.wait(seconds)

    def hold(self, until: threading.Event) -> None:
        """Wait for the event, or until the server stops."""
        while not until.wait(_TICK) and not self.stopping.is_set():
            pass

    def hold_before(self, fault: Fault) -> None:
        """Stall before the request is carried out, if the fault says so."""
        if fault.stall and fault.stall_after is None and not fault.after:
            self.hold(fault.stall)

    def hold_after(self, fault: Fault) -> None:
        """Stall after the request was carried out, before the reply."""
        if fault.stall and fault.stall_after is None and fault.after:
            self.hold(fault.stall)

    def _informational(self, count: float) -> bool:
        """Send the informational replies. Return False if the client gets nothing else."""
        sent = 0
        while sent < count and not self.stopping.is_set():
            self.connection.sendall(_HINT)
            sent += 1
            if count == FOREVER:
                self.stopping.wait(_TICK / 4)
        return count != FOREVER

    def _paced(self, data: bytes, head: int, fault: Fault) -> None:
        if fault.stall_after is not None:
            at = head + fault.stall_after
            self.connection.sendall(data[:at])
            self.hold(fault.stall or threading.Event())
            self.connection.sendall(data[at:])
        elif fault.drip_head is not None:
            self._dripping(data, fault.drip_head)
        elif fault.drip is not None:
            self.connection.sendall(data[:head])
            self._dripping(data[head:], fault.drip)
        else:
            self.connection.sendall(data)

    def _dripping(self, data: bytes, rate: float) -> None:
        piece = max(1, int(rate * _TICK))
        for at in range(0, len(data), piece):
            self.connection.sendall(data[at : at + piece])
            if self.stopping.wait(piece / rate):
                return


def _end(fault: Fault, head: int, whole: int) -> int | None:
    """Return how many bytes to send; None: all, and the connection stays open."""
    if fault.cut_head_after is not None:
        return min(fault.cut_head_after, head)
    if fault.cut_after is not None:
        return min(head + fault.cut_after, whole)
    return None
