"""Running credential helpers."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import AuthError, Cancelled
from mirror.registry.auth.credential_helpers import MAX_BYTES, HelperResponse, ask_helper
from mirror.util.cancellation import Stop

HOST = "reg.example.com"
GOOD = """echo '{"ServerURL": "https://reg.example.com/", "Username": "u", "Secret": "s"}'"""


class Helpers:
    """A folder with helpers, first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.environ = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}

    def add(self, script: str, name: str = "test", mode: int = 0o755) -> None:
        program = self.folder / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(mode)

    def ask(
        self, name: str = "test", server: str = HOST, timeout: float = 20, stop: Stop | None = None
    ) -> HelperResponse | None:
        return ask_helper(name, server, environ=self.environ, stop=stop or Stop(), timeout=timeout)


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(tmp_path / "bin")


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def test_a_helper_reads_the_server_from_its_standard_input(helpers: Helpers) -> None:
    helpers.add(f'echo "$@" > {helpers.folder}/args; cat > {helpers.folder}/input\n{GOOD}')
    assert HelperResponse("u", "s") == helpers.ask()
    assert "get\n" == (helpers.folder / "args").read_text()
    assert HOST == (helpers.folder / "input").read_text()


def test_a_helper_may_answer_without_reading_its_input(helpers: Helpers) -> None:
    helpers.add(f"exec <&-\n{GOOD}")
    assert HelperResponse("u", "s") == helpers.ask()


@pytest.mark.parametrize(
    "text", ["credentials not found in native keychain", "Credentials not found", "credentials not found\n"]
)
def test_not_found_means_anonymous(helpers: Helpers, text: str) -> None:
    helpers.add(f"echo '{text}'; exit 1")
    assert helpers.ask() is None


def print_script(text: str) -> str:
    return f"cat <<'END'\n{text}\nEND"


def fields(**changes: object) -> str:
    return print_script(json.dumps({"ServerURL": HOST, "Username": "u", "Secret": "s", **changes}))


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo CANARY; exit 1", "exit code 1"),
        ("echo CANARY >&2; exit 3", "exit code 3"),
        ("echo credentials not found", "not valid JSON"),
        ("kill -9 $$", "exit code -9"),
        (":", "not valid JSON"),
        (print_script("CANARY"), "not valid JSON"),
        (print_script("{}"), "Username is missing"),
        (print_script("[1]"), "Username is missing"),
        ("head -c 50000 /dev/zero | tr '\\0' '['", "not valid JSON"),
        (fields(Username=""), "Username is missing, empty"),
        (fields(Username=1), "Username"),
        (fields(Secret=""), "Secret"),
        (fields(Secret=None), "Secret"),
        (fields(Secret="CANARY\n"), "Secret"),
        (fields(Secret="CANARY\0"), "Secret"),
        (fields(Secret="CANARY", ServerURL="https://evil.example"), "credentials for"),
        (fields(Secret="CANARY", ServerURL=f"https://{HOST}:5000"), "credentials for"),
        (fields(Secret="CANARY", ServerURL=f"{HOST}.evil.example"), "credentials for"),
        (fields(Secret="CANARY", ServerURL=7), "credentials for"),
        ("cat /dev/zero", f"more than {MAX_BYTES} bytes"),
        ("yes CANARY", f"more than {MAX_BYTES} bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_any_other_output_is_an_error_that_does_not_quote_it(
    helpers: Helpers, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], script: str, why: str
) -> None:
    caplog.set_level(logging.DEBUG)
    helpers.add(script)
    with pytest.raises(AuthError, match=why) as caught:
        helpers.ask()
    assert "auth_failed" == caught.value.code
    assert "CANARY" not in f"{caught.value}{caught.value.__cause__}{caplog.text}{capfd.readouterr()}"


@pytest.mark.parametrize("other", ["", f"https://{HOST}/v2/", f"{HOST}:443", "REG.example.com"])
def test_the_server_in_the_response_may_have_another_spelling(helpers: Helpers, other: str) -> None:
    helpers.add(fields(ServerURL=other))
    assert HelperResponse("u", "s") == helpers.ask()


@pytest.mark.parametrize(
    "script", ["sleep 60", "sleep 60 & exec >&-; wait", f"{GOOD}; sleep 60 &", f"{GOOD}; exec >&-; sleep 60"]
)
def test_a_hanging_helper_is_killed_with_its_process_group(helpers: Helpers, script: str) -> None:
    helpers.add(f"echo $$ > {helpers.folder}/pid\n{script}")
    started = time.monotonic()
    for timeout in (0.4, 2.0, 10.0):  # starting it may take long on a busy machine
        with pytest.raises(AuthError, match="time limit"):
            helpers.ask(timeout=timeout)
        if (helpers.folder / "pid").exists():
            break
    assert time.monotonic() - started < 50, "rather than the minute that it sleeps"
    group = int((helpers.folder / "pid").read_text())
    members = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]

    def in_group(pid: int) -> bool:
        try:
            return os.getpgid(pid) == group and is_running(pid)
        except ProcessLookupError:
            return False

    wait_until(lambda: not any(in_group(pid) for pid in members))


def test_a_stop_ends_a_helper_at_once(helpers: Helpers) -> None:
    helpers.add(f"echo $$ > {helpers.folder}/pid; sleep 60")
    stop = Stop()
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            helpers.ask(stop=stop)
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: (helpers.folder / "pid").exists() and (helpers.folder / "pid").read_text() != "")
    stop.request("a signal")
    thread.join(60)
    assert ["a signal"] == [str(error) for error in ended]
    assert not is_running(int((helpers.folder / "pid").read_text()))


def test_no_helper_is_started_after_a_stop(helpers: Helpers) -> None:
    helpers.add(f"touch {helpers.folder}/ran; {GOOD}")
    stop = Stop()
    stop.request("a signal")
    with pytest.raises(Cancelled):
        helpers.ask(stop=stop)
    assert not (helpers.folder / "ran").exists()


@pytest.mark.parametrize("name", ["../x", "a b", "", "/bin/sh", "a" * 65, "x;y", "x\n", "ü"])
def test_an_invalid_helper_name_is_rejected(helpers: Helpers, name: str) -> None:
    with pytest.raises(AuthError, match="credential helper name"):
        helpers.ask(name)


@pytest.mark.parametrize("server", ["reg.example.com\nevil.example", "a\0b", "a\x7f"])
def test_a_server_name_with_control_characters_is_rejected(helpers: Helpers, server: str) -> None:
    helpers.add(f"touch {helpers.folder}/ran; {GOOD}")
    with pytest.raises(AuthError, match="server name"):
        helpers.ask(server=server)
    assert not (helpers.folder / "ran").exists()


def test_a_missing_or_non_executable_helper_is_an_error(helpers: Helpers) -> None:
    helpers.add(GOOD, "plain", mode=0o644)
    (helpers.folder / "docker-credential-folder").mkdir()
    helpers.add(GOOD, "writable", mode=0o777)
    for name in ("missing", "plain", "folder", "writable"):
        with pytest.raises(AuthError, match=f"docker-credential-{name} is not on PATH"):
            helpers.ask(name)


def test_a_file_that_is_not_a_program_is_an_error(helpers: Helpers) -> None:
    helpers.add(GOOD)
    (helpers.folder / "docker-credential-test").write_bytes(b"\x00\x01 no program")
    with pytest.raises(AuthError, match="cannot be run"):
        helpers.ask()


def test_unsafe_path_entries_are_not_searched(
    helpers: Helpers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.add(f"echo $PATH > {helpers.folder}/path\n{GOOD}")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    evil = open_to_all / "docker-credential-test"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/evil\n")
    evil.chmod(0o755)
    open_to_all.chmod(0o777)
    monkeypatch.chdir(open_to_all)
    helpers.environ["PATH"] = f":.:open:{open_to_all}:{helpers.environ['PATH']}:/does/not/exist"
    assert HelperResponse("u", "s") == helpers.ask()
    assert not (tmp_path / "evil").exists()
    assert f"{helpers.folder}:/usr/bin:/bin\n" == (helpers.folder / "path").read_text()


def test_a_helper_receives_only_known_variables(helpers: Helpers) -> None:
    helpers.add(f"env > {helpers.folder}/env\n{GOOD}")
    wanted = {
        "HOME": "/h", "AWS_PROFILE": "a", "GOOGLE_APPLICATION_CREDENTIALS": "g", "AZURE_CLIENT_ID": "z",
        "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/r", "https_proxy": "http://proxy", "GNUPGHOME": "/g",
    }  # fmt: skip
    secret = {"HUB_TOKEN": "CANARY", "DOCKER_AUTH_CONFIG": "CANARY", "LD_PRELOAD": "x", "MY_AWS_KEY": "CANARY"}
    helpers.environ |= wanted | secret
    helpers.ask()
    seen = dict(line.split("=", 1) for line in (helpers.folder / "env").read_text().splitlines())
    assert wanted == {name: seen.get(name) for name in wanted}
    assert {"PATH", "PWD", "_", "SHLVL", "OLDPWD", *wanted} >= set(seen)
