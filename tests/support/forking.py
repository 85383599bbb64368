"""Runs the tool in processes forked from one that has imported it (tests/support/child/forking.py)."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.support import guards

_DECIDED_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ", "OPENSSL", "COVERAGE")


class Forking:
    """The process that forks the runs of one test process. It exists from the first run to the end of the test
    process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {
            **{name: value for name, value in environment.items() if name.startswith((*_DECIDED_AT_START, "PATH"))},
            "MIRROR_TESTS_FORKING": "1",
        }
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with this environment may be forked: the variables that Python reads at its start must be
        equal."""
        return all(
            environment.get(name) == self._environment.get(name)
            for name in {*environment, *self._environment} - {"MIRROR_TESTS_FORKING"}
            if name.startswith(_DECIDED_AT_START)
        )

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        timeout: float,
        *,
        stdout: int | None = None,
        began: Callable[[int], None] | None = None,
    ) -> tuple[int, str, str]:
        """Run to the end; return exit code (negative: the signal that ended it), standard output and standard error.

        stdout: a descriptor to use instead; the output is not returned then. began: called with the process id.
        Raises subprocess.TimeoutExpired after killing the run."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            descriptors = [out.fileno() if stdout is None else stdout, err.fileno()]
            request = json.dumps({"arguments": arguments, "environment": dict(environment), "cwd": str(cwd)}).encode()
            reading, writing = os.pipe()
            try:
                try:
                    socket.send_fds(self._started(), [request], [*descriptors, writing])
                finally:
                    os.close(writing)
                code = _wait(reading, timeout, began)
            finally:
                os.close(reading)
            texts = [_text(file) for file in (out, err)]
        if code is None:
            raise subprocess.TimeoutExpired(list(arguments), timeout, *texts)
        return code, texts[0], texts[1]

    def _started(self) -> socket.socket:
        with self._lock, guards.keep():
            if self._requests is None:
                self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "forking"], stdin=theirs.fileno(), env=self._environment
                    )
                atexit.register(self._end, self._requests, process)
            return self._requests

    @staticmethod
    def _end(requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
        requests.close()
        process.wait()


def _wait(status: int, timeout: float, began: Callable[[int], None] | None) -> int | None:
    """Wait for a run whose process id and wait status come from a pipe. began: called with the process id.

    Returns the exit code; None if the run reached its time limit (seconds) and was killed."""
    end = time.monotonic() + timeout
    seen = b""
    killed = False
    while True:
        left = None if killed else max(0, end - time.monotonic()) * 1000
        if not _poll(status, left):
            killed = True
            with suppress(ProcessLookupError):
                os.killpg(int(seen.split()[0]), signal.SIGKILL)
        elif piece := os.read(status, 100):
            seen += piece
            if began and b"\n" in seen:
                began(int(seen.split()[0]))
                began = None
        elif killed:
            return None
        else:
            return os.waitstatus_to_exitcode(int(seen.split()[1]))


def _poll(descriptor: int, milliseconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n")
