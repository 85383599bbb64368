"""Runs Docker's credential helpers.

A helper is a program named `docker-credential-NAME`. It reads the name of a server from standard input, and writes a
user name and a secret as JSON to standard output. Source: the `get` command in the protocol of the
docker-credential-helpers project.

A helper runs with the user's rights, so its name, location, run time and output size are restricted. Its standard error
is discarded, because some helpers print secrets to it. Any result other than credentials or the message "credentials
not found" is an error, because a broken helper must not lead to anonymous requests.
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
from mirror.registry.auth.docker_config import home_directory, normalize_host
from mirror.util.cancellation import Stop
from mirror.util.structs import RedactedStruct

MAX_BYTES = 64 * 1024  # of a helper's output

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_FOUND = "credentials not found"
_POLL_INTERVAL = 0.1  # seconds between two checks for a stop request

# The environment variables that helpers are known to need: those for finding programs and the user's files, and those
# for keychains (the session bus, gpg, pass), clouds (configuration, roles, endpoints) and proxies. Other variables are
# not passed on, since they may contain secrets.
_PASSED_VARIABLES = re.compile(
    r"HOME|USER|LOGNAME|LANG|LC_[A-Z]+|TZ|TMPDIR|DOCKER_CONFIG|REGISTRY_AUTH_FILE|XDG_\w+"
    r"|DBUS_SESSION_BUS_ADDRESS|GNUPGHOME|PASSWORD_STORE_\w+"
    r"|AWS_\w+|GOOGLE_\w+|CLOUDSDK_\w+|AZURE_\w+"
    r"|(?i:https?_proxy|no_proxy)|SSL_CERT_(?:FILE|DIR)"
)


class HelperResponse(RedactedStruct, frozen=True):
    """The user name and the secret that a credential helper returned."""

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
) -> HelperResponse | None:
    """Run `docker-credential-NAME get` and return the credentials for `server`, or None if the helper has none.

    `port` is the default port, which server names may omit. Blocks for at most `timeout` seconds. After that time, or
    on a stop request, the helper and its process group are killed. Raises AuthError if the helper is not found or
    fails, or if its output is invalid. Raises Cancelled after a stop request."""
    if not _NAME.fullmatch(name):
        raise AuthError(f"{printable(name, 80)!r} is not a valid credential helper name", hint=_HINT)
    if _CONTROL.search(server):
        raise AuthError(f"a credential helper cannot be run for the invalid server name {printable(server, 80)!r}")
    program = f"docker-credential-{name}"
    path = _find_program(program, environ)
    if path is None:
        raise AuthError(f"the credential helper {program} is not on PATH", hint=_PATH_HINT)
    code, output = _run_helper(path, server, _helper_environment(environ), stop, timeout)
    if code != 0:
        if output.decode("utf-8", "replace").strip().lower().startswith(_NOT_FOUND):
            return None
        hint = f"run `{program} get` by hand to see its error"
        raise AuthError(f"{program} failed for {server}: exit code {code}", hint=hint)
    return _parse_response(program, server, output, port)


def _safe_path_entries(environ: Mapping[str, str]) -> list[str]:
    """Return the entries of PATH, except those that are empty, relative or world-writable."""
    passed = []
    for entry in environ.get("PATH", os.defpath).split(os.pathsep):
        if entry.startswith("/"):
            with suppress(OSError, ValueError):
                if not Path(entry).stat().st_mode & stat.S_IWOTH:
                    passed.append(entry)
    return passed


def _find_program(program: str, environ: Mapping[str, str]) -> Path | None:
    """Search PATH for the executable `program`, ignoring world-writable files. Return its path, or None."""
    for directory in _safe_path_entries(environ):
        path = Path(directory, program)
        with suppress(OSError):
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and not mode & stat.S_IWOTH and os.access(path, os.X_OK):
                return path
    return None


def _helper_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a helper, which contains only the variables that helpers are known to need."""
    passed = {name: value for name, value in environ.items() if _PASSED_VARIABLES.fullmatch(name)}
    passed["PATH"] = os.pathsep.join(_safe_path_entries(environ))
    home = home_directory(environ)
    if home is not None:
        passed["HOME"] = str(home)
    return passed


def _run_helper(
    program: Path, server: str, environment: dict[str, str], stop: Stop, timeout: float
) -> tuple[int, bytes]:
    """Run `program get` and return its exit code and output. Raises AuthError, Cancelled."""
    deadline = time.monotonic() + timeout
    stop.raise_if_requested()
    try:
        # A new session is a new process group, which can be killed as a whole, and it has no terminal for prompts.
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
            _send_server(process, server)
            output = _read_output(process, program.name, deadline, stop)
            code = _wait_for_exit(process, program.name, deadline, stop)
        finally:
            # The process has not been waited for yet, so its process group id cannot have been reused.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return code, output


def _send_server(process: subprocess.Popen[bytes], server: str) -> None:
    """Write the name of the server to the helper's standard input, then close that input."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # a helper may exit without reading its input
            process.stdin.write(server.encode())  # at most about 260 bytes, so the pipe does not block
        with suppress(BrokenPipeError):
            process.stdin.close()


def _read_output(process: subprocess.Popen[bytes], name: str, deadline: float, stop: Stop) -> bytes:
    """Read and return the output of the helper, up to its end.

    Raises AuthError if the output is too long or still incomplete at the deadline, and Cancelled after a stop
    request."""
    read = bytearray()
    if process.stdout is None:
        return b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_next_wait(name, deadline, stop)):
                chunk = os.read(process.stdout.fileno(), MAX_BYTES)
                if not chunk:
                    return bytes(read)
                read += chunk
                if len(read) > MAX_BYTES:
                    raise AuthError(f"{name} wrote more than {MAX_BYTES} bytes of output")


def _wait_for_exit(process: subprocess.Popen[bytes], name: str, deadline: float, stop: Stop) -> int:
    """Wait until the helper exits, and return its exit code.

    Raises AuthError after the deadline, and Cancelled after a stop request."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_next_wait(name, deadline, stop))


def _next_wait(name: str, deadline: float, stop: Stop) -> float:
    """Return how many seconds to wait before the next check for a stop request.

    Raises AuthError after the deadline, and Cancelled after a stop request."""
    stop.raise_if_requested()
    left = deadline - time.monotonic()
    if left <= 0:
        raise AuthError(f"{name} did not finish within its time limit and was killed")
    return min(left, _POLL_INTERVAL)


def _parse_response(program: str, server: str, output: bytes, port: int) -> HelperResponse:
    """Parse the output of a helper. Raises AuthError if it is invalid; the message does not quote the output."""
    try:
        response = json.loads(output.decode("utf-8"))
    except (ValueError, RecursionError):
        raise AuthError(f"the output of {program} for {server} is not valid JSON") from None
    fields = response if isinstance(response, dict) else {}
    username, secret = fields.get("Username"), fields.get("Secret")
    for key, text in (("Username", username), ("Secret", secret)):
        if not isinstance(text, str) or not text or _CONTROL.search(text):
            raise AuthError(f"the output of {program} for {server} is invalid: {key} is missing, empty or malformed")
    other = fields.get("ServerURL") or server
    if not isinstance(other, str) or normalize_host(other, port) != normalize_host(server, port):
        raise AuthError(f"{program} returned credentials for {printable(other, 80)} instead of {server}")
    return HelperResponse(str(username), str(secret))


_HINT = "check credHelpers and credsStore in Docker's configuration"
_PATH_HINT = "entries of PATH that are empty, relative or world-writable are not searched"
