"""Imports the program once, and forks for each run. tests/support/forking.py starts `python -m forking`.

Most of the processor time of a short run is the start of Python and the imports. In other respects a forked run equals
a started one: it has its own process group, environment, standard streams and exit status.

Descriptor 0 is a socket that preserves message boundaries. A request is JSON with `arguments`, `environment` and `cwd`,
and comes with three descriptors: stdout, stderr, and a pipe that receives the process id and then the wait status of
the run, one line each. The process exits when the other end of the socket is closed.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from contextlib import suppress
from importlib import import_module

import sitecustomize  # type: ignore[import-not-found]  # on the path of the tool only

from mirror.__main__ import entry

_USED_BY_MOST_RUNS = (
    "commands.sync",
    "commands.plan",
    "commands.verify",
    "commands.disk_stores",
    "sync.dry_run",
    "sync.verifier",
    "config.schema_errors",
)

_REQUEST_BYTES = 1 << 20


def main() -> None:
    """Fork for every request. Returns in the process that becomes the run."""
    runs: dict[int, tuple[int, int]] = {}  # pidfd -> process id, pipe for the status
    poll = select.poll()
    with socket.socket(fileno=os.dup(0)) as requests:
        poll.register(requests, select.POLLIN)
        while True:
            ready, _ = poll.poll()[0]
            if ready != requests.fileno():
                poll.unregister(ready)
                _report_end(ready, *runs.pop(ready))
                continue
            message, (out, err, status_to), _flags, _sender = _receive(requests)
            run = os.fork()
            if not run:
                break
            os.close(out)
            os.close(err)
            os.write(status_to, b"%d\n" % run)
            ended = os.pidfd_open(run)
            runs[ended] = run, status_to
            poll.register(ended, select.POLLIN)
    os.setsid()
    _prepare(json.loads(message), out, err, status_to)


def _receive(requests: socket.socket) -> tuple[bytes, list[int], int, object]:
    received = socket.recv_fds(requests, _REQUEST_BYTES, 3)
    if not received[0]:
        sys.exit(0)
    return received


def _report_end(ended: int, run: int, status_to: int) -> None:
    """Write the wait status of a run that has ended."""
    status = os.waitpid(run, 0)[1]
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(status_to, b"%d\n" % status)
    os.close(status_to)
    os.close(ended)


def _prepare(request: dict[str, object], out: int, err: int, status_to: int) -> None:
    """Make this process like a started one."""
    os.close(status_to)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, max(out, err, status_to, 64) + 1)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]  # a dict of strings
    sitecustomize.arm()
    sys.argv = ["mirror", *request["arguments"]]  # type: ignore[misc]  # a list of strings


if __name__ == "__main__":
    for name in _USED_BY_MOST_RUNS:
        import_module(f"mirror.{name}")
    main()
    entry()
