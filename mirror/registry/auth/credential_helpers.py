"""Running docker's credential helpers.

A helper is a program `docker-credential-NAME` that reads a server's name from its standard input and writes the
user name and the secret as JSON. Source: the protocol of the docker-credential-helpers project, `get`. It is
another's program with the user's rights: its name, its place, its time and its output have bounds, and what it
says on its standard error is seen by nobody (some print secrets there). Anything but an answer or a plain
"credentials not found" is an error: work must not go on anonymously because a helper is broken.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mirror.errors import AuthError, printable
from mirror.registry.auth.docker_config import bare_host, home
from mirror.util.cancellation import Stop
from mirror.util.structs import Hiding

MAX_BYTES = 64 * 1024  # of its output

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_FOUND = "credentials not found"
_TICK = 0.1  # seconds between two looks at whether we were stopped

# What helpers are known to need: where to find programs and the user's files; how to reach a keychain (the session
# bus, gpg, pass); who they are to a cloud (its configuration, roles and endpoints) and through which proxy. All
# else, our own secrets above all, stays here.
_KEPT = re.compile(
    r"HOME|USER|LOGNAME|LANG|LC_[A-Z]+|TZ|TMPDIR|DOCKER_CONFIG|REGISTRY_AUTH_FILE|XDG_\w+"
    r"|DBUS_SESSION_BUS_ADDRESS|GNUPGHOME|PASSWORD_STORE_\w+"
    r"|AWS_\w+|GOOGLE_\w+|CLOUDSDK_\w+|AZURE_\w+"
    r"|(?i:https?_proxy|no_proxy)|SSL_CERT_(?:FILE|DIR)"
)


class HelperAnswer(Hiding, frozen=True):
    HIDDEN = ("secret",)

    username: str
    secret: str


def ask_helper(
    name: str,
    server: str,
    *,
    environ: Mapping[str, str],
    stop: Stop,
    port: int = 443,
    timeout: float,
) -> HelperAnswer | None:
    """What `docker-credential-NAME get` has for `server`; None: it says that it has nothing.

    port: the one that a server's name need not mention. Blocks for at most `timeout` seconds; then, and when
    stopped, the helper and its process group are killed. Raises AuthError, Cancelled."""
    if not _NAME.fullmatch(name):
        raise AuthError(f"{printable(name, 80)!r} is not a credential helper's name", hint=_HINT)
    if _CONTROL.search(server):
        raise AuthError(f"a credential helper is not asked for {printable(server, 80)!r}")
    program = f"docker-credential-{name}"
    found = _find(program, environ)
    if found is None:
        raise AuthError(f"the credential helper {program} is not on PATH", hint=_PATH_HINT)
    code, output = _run(found, server, _environment(environ), stop, timeout)
    if code != 0:
        if output.decode("utf-8", "replace").strip().lower().startswith(_NOT_FOUND):
            return None
        raise AuthError(f"{program} failed for {server}: exit code {code}", hint=f"run `{program} get` by hand")
    return _parsed(program, server, output, port)


def _directories(environ: Mapping[str, str]) -> list[str]:
    """PATH without what others could put a program into: empty, relative and world-writable entries."""
    kept = []
    for entry in environ.get("PATH", os.defpath).split(os.pathsep):
        if entry.startswith("/"):
            with suppress(OSError, ValueError):
                if not Path(entry).stat().st_mode & stat.S_IWOTH:
                    kept.append(entry)
    return kept


def _find(program: str, environ: Mapping[str, str]) -> Path | None:
    for directory in _directories(environ):
        path = Path(directory, program)
        with suppress(OSError):
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and not mode & stat.S_IWOTH and os.access(path, os.X_OK):
                return path
    return None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if _KEPT.fullmatch(name)}
    kept["PATH"] = os.pathsep.join(_directories(environ))
    where = home(environ)
    if where is not None:
        kept["HOME"] = str(where)
    return kept


def _run(program: Path, server: str, environment: dict[str, str], stop: Stop, timeout: float) -> tuple[int, bytes]:
    """-> exit code and output of `program get`."""
    deadline = time.monotonic() + timeout
    stop.check()
    try:
        # A session of its own is a process group of its own, which can be killed whole, and has no terminal to ask on.
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise AuthError(f"{program.name} cannot be run: {printable(error.strerror)}") from error
    with process:
        try:
            _send(process, server)
            output = _output(process, program.name, deadline, stop)
            code = _ended(process, program.name, deadline, stop)
        finally:
            # While it is not waited for, its process group cannot be anybody else's.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return code, output


def _send(process: subprocess.Popen[bytes], server: str) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it may answer without reading
            process.stdin.write(server.encode())  # fits in any pipe: a name has at most some 260 bytes
        with suppress(BrokenPipeError):
            process.stdin.close()


def _output(process: subprocess.Popen[bytes], name: str, deadline: float, stop: Stop) -> bytes:
    """All it writes until it closes its output."""
    read = bytearray()
    if process.stdout is None:
        return b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_tick(name, deadline, stop)):
                chunk = os.read(process.stdout.fileno(), MAX_BYTES)
                if not chunk:
                    return bytes(read)
                read += chunk
                if len(read) > MAX_BYTES:
                    raise AuthError(f"{name} wrote more than {MAX_BYTES} bytes")


def _ended(process: subprocess.Popen[bytes], name: str, deadline: float, stop: Stop) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_tick(name, deadline, stop))


def _tick(name: str, deadline: float, stop: Stop) -> float:
    """How long to wait now, seconds. Raises AuthError past the deadline; Cancelled."""
    stop.check()
    left = deadline - time.monotonic()
    if left <= 0:
        raise AuthError(f"{name} did not end in time and was killed")
    return min(left, _TICK)


def _parsed(program: str, server: str, output: bytes, port: int) -> HelperAnswer:
    try:
        answer = json.loads(output.decode("utf-8"))
    except (ValueError, RecursionError):
        raise AuthError(f"{program} gave no usable answer for {server}: not JSON") from None
    fields = answer if isinstance(answer, dict) else {}
    username, secret = fields.get("Username"), fields.get("Secret")
    for key, text in (("Username", username), ("Secret", secret)):
        if not isinstance(text, str) or not text or _CONTROL.search(text):
            raise AuthError(f"{program} gave no usable answer for {server}: {key} is missing, empty or broken")
    other = fields.get("ServerURL") or server
    if not isinstance(other, str) or bare_host(other, port) != bare_host(server, port):
        raise AuthError(f"{program} answered for another server than {server}: {printable(other, 80)}")
    return HelperAnswer(str(username), str(secret))


_HINT = "see credHelpers and credsStore in docker's configuration"
_PATH_HINT = "entries of PATH that are empty, relative or writable for everybody are not searched"
