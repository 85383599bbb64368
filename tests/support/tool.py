"""Runs the tool as users do: `python -m mirror`, in a clean environment, with its own HOME and state."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import yaml

from tests.registries.certificates import Authority
from tests.support.forking import Forking

ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("PATH", "LANG", "LC_ALL", "COVERAGE_PROCESS_START", "COVERAGE_FILE")
_NOT_FOR_USERS = ("Traceback (most recent call last)", "Exception ignored", "Warning:")
_COMMON = {
    **{name: os.environ[name] for name in _KEPT if name in os.environ},
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support' / 'child'}",
    "PYTHONWARNINGS": "error",
    "COLUMNS": "1000",  # tests look for texts in single lines
}
_forking = Forking(_COMMON)


class Configured(Protocol):
    """The attributes that a config file needs of a registry, a `Front` or a `Pipe`."""

    tls: Authority | None

    @property
    def host(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run. code: exit code; seconds: wall time."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err

    def __str__(self) -> str:
        words = " ".join(self.arguments)
        return f"mirror {words}: exit {self.code} after {self.seconds:.1f} s\n{self.out[-3000:]}\n{self.err[-3000:]}"


class MirrorTool:
    """The tool of one test: a directory with HOME, state and config files. Use with `with`; running processes are
    killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.state = folder, folder / "home", folder / "state"
        self.home.mkdir(parents=True)
        self.config_file = folder / "mirror.yaml"
        self.runs: list[Ran] = []
        self._tripwire = folder / "left-loopback"
        self.warnings = ""  # lines on stderr that look like a Python warning and are allowed
        self._running: list[tuple[subprocess.Popen[str], float]] = []
        self._configs: set[Path] = set()
        self.environment = {**_COMMON, "HOME": str(self.home), "MIRROR_TESTS_TRIPWIRE": str(self._tripwire)}

    def __enter__(self) -> MirrorTool:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _started in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    # ---- configuration

    def config(
        self, mirrors: Sequence[Mapping[str, Any]], *registries: Configured, file: Path | None = None, **keys: Any
    ) -> Path:
        """Write a config file. registries: how to contact them (http, or https with their CA and client certificate).

        keys: any key of the file; `registries` is merged by host; underscores are not changed."""
        hosts: dict[str, dict[str, Any]] = {registry.host: _reached(registry) for registry in registries}
        for host, settings in keys.pop("registries", {}).items():
            hosts[host] = {**hosts.get(host, {}), **settings}
        document = {"version": 1, "state": str(self.state), **keys, "registries": hosts, "mirrors": list(mirrors)}
        path = file or self.config_file
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        self._configs.add(path)
        return path

    # ---- running

    def __call__(
        self,
        *arguments: str | Path,
        timeout: float = 60,
        environment: Mapping[str, str] | None = None,
        only_environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> Ran:
        """Run to the end. The run is forked instead of started if its environment allows that.

        environment, only_environment, cwd: see `start`. options: see `Forking.run`; only for a run that is forked."""
        every = {**self.environment, **(environment or {})}
        if only_environment is not None or not _forking.serves(every):
            assert not options, "this run cannot be forked"
            process = self.start(*arguments, environment=environment, only_environment=only_environment, cwd=cwd)
            return self.finish(process, timeout)
        words, started = tuple(map(str, arguments)), time.monotonic()
        try:
            code, out, err = _forking.run(words, every, cwd or self.folder, timeout, **options)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(
                f"still running after {timeout} s: {words!r}\n{late.output!r}\n{late.stderr!r}"
            ) from None
        return self._ended(Ran(words, code, out, err, time.monotonic() - started))

    def sync(
        self, *arguments: str | Path, expect: int | tuple[int, ...] = 0, timeout: float = 60, **options: Any
    ) -> Ran:
        """Run `mirror sync` on the config file, and check its exit code."""
        ran = self("sync", self.config_file, *arguments, timeout=timeout, **options)
        wanted = expect if isinstance(expect, tuple) else (expect,)
        assert ran.code in wanted, f"want exit {wanted}\n{ran}"
        return ran

    def verify(self, *arguments: str | Path, file: Path | None = None) -> tuple[Ran, list[tuple[str, str]]]:
        """Run `mirror verify`. Return each problem: the target, or the source if there is none, and the message."""
        report = self.folder / "verify.json"
        report.unlink(missing_ok=True)
        ran = self("verify", file or self.config_file, "--report", report, *arguments)
        images = json.loads(report.read_text())["images"]
        found = [
            (image["target"] or image["source"], error["message"])
            for image in images
            for error in [image.get("error"), *image.get("more_errors", ())]
            if error is not None and image["result"] != "skipped"
        ]
        return ran, sorted(found)

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that starts the tool."""
        return [sys.executable, "-m", "mirror", *map(str, arguments)]

    def start(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        only_environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a run in a process group of its own. environment: additional variables; only_environment: replaces
        all."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**self.environment, **(environment or {})} if only_environment is None else dict(only_environment),
            cwd=cwd or self.folder,
            start_new_session=True,
        )
        self._running.append((process, time.monotonic()))
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = 60) -> Ran:
        """Wait for the end of a run. Raises AssertionError on a timeout, a traceback or a warning."""
        started = next(at for running, at in self._running if running is process)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"still running after {timeout} s: {process.args!r}\n{out}\n{err}") from None
        finally:
            self._running.remove((process, started))
        arguments = tuple(process.args[3:]) if isinstance(process.args, list) else ()
        return self._ended(Ran(arguments, process.returncode, out, err, time.monotonic() - started))

    def _ended(self, ran: Ran) -> Ran:
        self.runs.append(ran)
        assert not self._tripwire.exists(), self._tripwire.read_text()
        for words in _NOT_FOR_USERS:
            assert words not in ran.err.replace(self.warnings or "\0", ""), f"not for users' eyes:\n{ran}"
        return ran

    # ---- results

    def report(self) -> dict[str, Any]:
        """Return the only report.json below the state directory."""
        found = sorted(self.state.rglob("report.json"))
        assert len(found) == 1, f"report.json: {found}"
        document: dict[str, Any] = json.loads(found[0].read_text())
        assert document["schema"] == 1
        return document

    def results(self) -> dict[str, str]:
        """Return target reference -> result of the report."""
        return {image["target"]: image["result"] for image in self.report()["images"]}

    def failed(self) -> list[str]:
        """Return the lines of failed.txt."""
        found = sorted(self.state.rglob("failed.txt"))
        assert len(found) == 1, f"failed.txt: {found}"
        return found[0].read_text().splitlines()

    def log(self) -> list[dict[str, Any]]:
        """Return the records of mirror.log and its rotated files, the oldest first. Each line must be a JSON object."""
        files = [path for path in self.state.rglob("mirror.log*") if path.is_file() and ".lock" not in path.suffixes]
        lines = []
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
            for number, text in enumerate(path.read_text().splitlines(), 1):
                document = json.loads(text)
                assert isinstance(document, dict), f"{path.name}:{number} is not an object"
                lines.append(document)
        return lines

    def sweep(self, *secrets: str, skip: Sequence[Path] = ()) -> None:
        """Check that no secret, in any encoding, is in the output of a run or a file that the tool wrote.

        Config files written by `config` and the files in `skip` may contain it."""
        short = [len(secret) for secret in secrets if len(secret) < 8]
        assert not short, "too short to be looked for"
        needles = {needle for secret in secrets for needle in shapes(secret)}
        assert needles, "nothing to look for"
        places = {f"run {number}, {' '.join(ran.arguments)}": ran.text for number, ran in enumerate(self.runs)}
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self._configs and path not in skip:
                places[str(path.relative_to(self.folder))] = path.read_bytes().decode("latin-1")
        hits = [place for place, text in places.items() if any(needle in text for needle in needles)]
        assert not hits, f"a secret is in {hits}"


def shapes(secret: str) -> set[str]:
    """Return the encodings of a secret; for base64, at any position in the encoded text."""
    data = secret.encode()
    found = {data.decode("latin-1"), quote(secret, safe=""), data.hex(), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    for shift in range(3):
        # Leave out characters that also encode neighbouring bytes.
        start, end = (0, 2, 3)[shift], (shift + len(data)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"\0" * shift + data).decode()[start:end])
    return found


def _reached(registry: Configured) -> dict[str, Any]:
    if not registry.tls:
        return {"plain-http": True}
    certificate, key = registry.tls.client
    return {"tls": {"ca": str(registry.tls.ca), "cert": str(certificate), "key": str(key)}}
