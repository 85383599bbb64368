"""Invalid configurations on the command line: refused with their position and a hint, before any host is contacted."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.cli import _COMMANDS, main, make_parser
from mirror.commands.arguments import LATER_OPTIONS
from mirror.commands.help_texts import EPILOGS
from tests.registries.listener import Listener
from tests.support.bad_configs import CANARY, CASES, Case
from tests.support.tool import MirrorTool

COMMANDS = ("sync", "plan", "verify", "validate")
HELPED = (
    *("sync", "copy", "plan", "verify", "validate", "lock", "explain", "schema", "bundle", "inventory", "serve"),
    *("prune", "convert", "report", "help", "bundle verify", "bundle list"),
)
HOSTS = ("a.example.com", "b.example.com")


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A port that no connection may reach."""

    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(1)

    listening = Listener(serve, name="nobody")
    listening.start()
    yield listening
    listening.stop()


def _write(case: Case, folder: Path) -> Path:
    for name, content in {"mirror.yaml": case.text, **case.files}.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(data)
    return folder / "mirror.yaml"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_invalid_configuration_is_refused_with_its_position_and_a_hint(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request is made: the guards of the test suite would detect a look-up of any of these hosts."""
    path = _write(case, tmp_path)
    if case.secrets:
        assert 0 == main(["validate", str(path)])
        said = capsys.readouterr()
        assert said.out.startswith(f"{path}: valid")
        assert f"mirror: warning: {path}:{case.at}: " in said.err
        assert [] == [words for words in case.says if words not in said.err]
    assert 2 == main(["validate", "--secrets", str(path)])
    said = capsys.readouterr()
    assert "" == said.out
    if case.at:
        assert f"{path}:{case.at}: " in said.err
    for words in case.says:
        assert words in said.err
    assert CANARY not in said.err
    assert [] == re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", said.err)
    assert 2 == main(["sync", str(path)])
    assert said.err == capsys.readouterr().err
    assert {path.name, *case.files} == {entry.name for entry in tmp_path.iterdir()}


@pytest.mark.parametrize("case", CASES[5 :: len(CASES) // 8], ids=lambda case: case.id)
def test_every_command_refuses_an_invalid_configuration_before_any_request(
    case: Case, listener: Listener, mirror_run: MirrorTool
) -> None:
    text = case.text if isinstance(case.text, bytes) else case.text.encode()
    for number, host in enumerate(HOSTS):
        spellings = re.compile(rb"(?i)" + re.escape(host).encode() + rb"\.?(:(443|80)\b)?")
        text = spellings.sub(f"127.0.0.{number + 1}:{listener.port}".encode(), text)
    path = _write(Case(case.id, text, case.at, case.says, case.files), mirror_run.folder)
    for command in ("sync", "plan"):
        ran = mirror_run(command, path)
        assert 2 == ran.code
        assert "" == ran.out
        assert ran.err.startswith("mirror: ")
        assert CANARY not in ran.err
    assert 0 == listener.accepted
    assert not mirror_run.state.exists()


def test_all_errors_of_a_file_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text(
        "version: 1\n"
        "parallel: {uploads: many}\n"
        "mirrors:\n"
        "- source: a.example.com/app\n"
        "  tragets: [b.example.com/app]\n"
        "- source: a.example.com/App\n"
        "  targets: [b.example.com/app]\n"
    )
    assert 2 == main(["sync", str(path)])
    said = capsys.readouterr().err
    places = [f"{path}:{line}:" for line in (2, 5, 6)]
    assert places == [place for place in places if place in said]
    assert 'did you mean "targets"?' in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sink"],
        ["sync"],
        ["sync", "{config}", "--sharp"],
        ["sync", "{config}", "--shard", "4/4"],
        ["sync", "{config}", "--shard", "x"],
        ["sync", "{config}", "--lock-wait", "soon"],
        ["sync", "{config}", "--progress", "loud"],
        ["sync", "{config}", "-v", "-q"],
        ["sync", "{config}", "--every", "soon"],
        ["sync", "{config}", "--every", "15m", "--dry-run"],
        ["sync", "{config}", "--every", "15m", "--listen", "9090"],
        ["sync", "{config}", "--every", "15m", "--only-from", "{config}.none"],
        ["sync", "{config}", "--every", "15m", "--only", "other.example.com/*"],
        ["sync", "{config}", "--listen", "127.0.0.1:0"],
        ["sync", "{config}", "{config}"],
        ["sync", "{config}", "--only-from", "{config}.none"],
        ["sync", "{config}", "--base", "inventory.json"],
        ["verify", "{config}", "--dry-run"],
        ["bundle"],
        ["bundle", "list"],
        ["bundle", "sign", "x.tar"],
        ["inventory"],
        ["help", "sink"],
        ["help", "sync", "plan"],
        ["help", "bundle", "sign"],
        ["help", "bundle", "verify", "x.tar"],
        ["sync", "{config}", "--trace-http"],
        ["sync", "{config}", "--trace-http", "-"],
        ["sync", "{config}", "--json-events", "--dry-run"],
        ["sync", "{config}", "--trace-http", "{config}"],
        ["sync", "{config}", "--trace-http", "{folder}/state/state.db"],
        ["sync", "{config}", "--trace-http", "{folder}/both", "--report", "{folder}/both"],
        ["sync", "{config}", "--only", "other.example.com/*"],
        ["verify", "{config}", "--only", "other.example.com/app:v1"],
        ["verify", "{config}", "--base", "x"],
        ["plan", "{config}", "-q"],
        ["validate", "{config}", "--deep"],
        ["validate", "/nonexistent/mirror.yaml"],
        ["validate", "{folder}"],
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_2_with_a_short_message(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], listener: Listener
) -> None:
    path = tmp_path / "mirror.yaml"
    host = f"127.0.0.1:{listener.port}"
    path.write_text(
        f"version: 1\nstate: {tmp_path}/state\nregistries: {{'{host}': {{plain-http: true}}}}\n"
        f"mirrors: [{{source: {host}/a, targets: [{host}/b]}}]\n"
    )
    filled = [argument.format(config=path, folder=tmp_path) for argument in arguments]
    assert 2 == main(filled)
    said = capsys.readouterr()
    assert "" == said.out
    assert said.err.startswith("mirror: ")
    assert len(said.err.splitlines()) <= 3
    assert 0 == listener.accepted


@pytest.mark.parametrize(
    "arguments",
    [
        ["sync", "{config}", "--dask", "tcp://127.0.0.1:8786"],
    ],
    ids=" ".join,
)
def test_an_option_of_a_later_version_is_reported_as_such(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text("version: 1\nmirrors: [{source: a.example.com/a, targets: [b.example.com/b]}]\n")
    assert 2 == main([argument.format(config=path) for argument in arguments])
    said = capsys.readouterr()
    assert "" == said.out
    (option,) = (argument for argument in arguments if argument in LATER_OPTIONS[arguments[0]])
    assert said.err.startswith(f"mirror: `mirror {arguments[0]} {option}` is not in this version (")
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["syncc", "x.yaml"], "`mirror` has no command 'syncc' (did you mean `mirror sync`?)"),
        (["help", "syncc"], "`mirror` has no command 'syncc' (did you mean `mirror sync`?)"),
        (
            ["help", "nonsense"],
            "`mirror` has no command 'nonsense' (the commands are sync, plan, verify, validate, lock, explain, "
            "convert, copy, prune, bundle, inventory, serve, report, schema, help)",
        ),
        (["bundle", "verfy", "x.tar"], "`mirror bundle` has no command 'verfy' (did you mean `mirror bundle verify`?)"),
        (["bundle", "sign", "x"], "`mirror bundle` has no command 'sign' (the commands are verify, list)"),
        (["help", "bundle", "sign"], "`mirror bundle` has no command 'sign' (the commands are verify, list)"),
        (["help", "sync", "plan"], "`mirror sync` has no command 'plan' (see `mirror help sync`)"),
        (
            ["sync", "--onyl", "a/*", "x.yaml"],
            "`mirror sync` has no option '--onyl' (did you mean `--only`? see `mirror sync --help`)",
        ),
        (
            ["sync", "x.yaml", "--dry_run"],
            "`mirror sync` has no option '--dry_run' (did you mean `--dry-run`? see `mirror sync --help`)",
        ),
        (
            ["sync", "--parallel", "3", "etc/prod.yaml"],
            "`mirror sync` has no option '--parallel' (see `mirror sync --help`)",
        ),
        (["sync", "--parallel=3", "x.yaml"], "`mirror sync` has no option '--parallel' (see `mirror sync --help`)"),
        (["sync", "--parallel"], "`mirror sync` has no option '--parallel' (see `mirror sync --help`)"),
        (["sync", "-j", "3", "x.yaml"], "`mirror sync` has no option '-j' (see `mirror sync --help`)"),
        (
            ["bundle", "list", "--jsn", "x.tar"],
            "`mirror bundle list` has no option '--jsn' (see `mirror bundle list --help`)",
        ),
        (["--only", "sync"], "`mirror` has no option '--only' (see `mirror --help`)"),
        (["plan", "x.yaml", "y.yaml"], "unexpected argument 'y.yaml' (see `mirror plan --help`)"),
        (["sync"], "the following arguments are required: CONFIG (see `mirror sync --help`)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_names_the_argument_and_suggests_a_correction(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(arguments)
    assert ("", f"mirror: {said}\n") == tuple(capsys.readouterr())


def test_the_help_of_each_command_begins_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in HELPED:
        assert 0 == main(["help", *command.split()])
        usage, sentence, *_ = capsys.readouterr().out.split("\n\n")
        assert usage.startswith(f"usage: mirror {command} ")
        assert re.fullmatch(r"[A-Z][a-z]+ [^.?:]+\.", sentence), sentence


def test_the_help_of_each_command_has_an_example_and_the_exit_codes_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert set(HELPED) == set(EPILOGS)
    assert set(_COMMANDS) == {command.partition(" ")[0] for command in HELPED}
    for command in HELPED:
        assert 0 == main(["help", *command.split()])
        said = capsys.readouterr().out
        assert [] == [line for line in said.splitlines() if len(line) > 80]
        _, _, examples = said.rpartition("\nexample")
        examples, _, codes = examples.partition("\nexit codes:\n")
        found = re.findall(r"^  mirror (.*?)(?:  .*)?$", examples, re.MULTILINE)
        assert any(example.startswith(command) for example in found), command
        for example in found:
            make_parser().parse_args(shlex.split(example.partition(" > ")[0]))
        assert re.findall(r"^  ([0-9, ]+?)  \S", codes, re.MULTILINE), command


@pytest.mark.parametrize("command", ["", *HELPED])
def test_help_shows_the_usage_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["help", *command.split()])
    said = capsys.readouterr()
    assert "" == said.err
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert 0 == ended.value.code
    assert said.out == capsys.readouterr().out
    assert said.out.startswith(f"usage: mirror {command}".strip())
    assert "COMMAND" in said.out if not command else True


@pytest.mark.parametrize("name", ["none.tar", "none", "oci:none"])
@pytest.mark.parametrize("command", ["bundle verify", "bundle list", "inventory", "serve"])
def test_all_commands_report_a_missing_bundle_or_layout_with_the_same_message(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 2 == main([*command.split(), name])
    assert f"mirror: {name.removeprefix('oci:')} does not exist\n" == capsys.readouterr().err


@pytest.mark.parametrize("kind", ["none.tar", "oci:none", "base"])
def test_a_missing_bundle_layout_or_base_of_a_configuration_is_a_usage_error(
    listener: Listener, mirror_run: MirrorTool, kind: str
) -> None:
    host = f"127.0.0.1:{listener.port}"
    target, base = [f"{host}/{{repository}}"], {"base": "none.json"} if kind == "base" else {}
    mirrors = [{"source": f"{kind}:*", "targets": target}, {"source": f"{host}/a", "targets": [f"{host}/b"]}]
    if base:
        mirrors = [{"source": f"{host}/a", "targets": ["out.tar"], **base}]
    mirror_run.config(mirrors, registries={host: {"plain-http": True}})
    for command in ("sync", "plan", "verify"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 2 == ran.code, str(ran)
        assert re.search(r"none(\.tar)? does not exist|cannot read the inventory \S+none\.json", ran.err)
    assert 0 == listener.accepted


def test_no_layout_is_created_under_the_name_of_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 2 == main(["serve", "none.tar", "--listen", "127.0.0.1:0", "--writable"])
    assert "--writable" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


def test_a_missing_secret_is_reported_before_any_request(listener: Listener, mirror_run: MirrorTool) -> None:
    host = f"127.0.0.1:{listener.port}"
    secret = {"plain-http": True, "username": "acme", "password": {"env": "NO_SUCH_SECRET"}}
    mirrors = [{"source": f"{host}/a", "targets": [f"{host}/b"]}]
    mirror_run.config(mirrors, registries={host: secret})
    for command in COMMANDS:
        secrets = ["--secrets"] if command == "validate" else []
        ran = mirror_run(command, mirror_run.config_file, *secrets)
        assert 2 == ran.code
        assert "NO_SUCH_SECRET is unset or empty; the password is required, because a mirror uses" in ran.err
    ran = mirror_run("validate", mirror_run.config_file)
    assert 0 == ran.code
    assert "NO_SUCH_SECRET is unset or empty; a run needs it" in ran.err
    assert 0 == listener.accepted


def test_validate_accepts_a_valid_configuration_without_a_request(listener: Listener, mirror_run: MirrorTool) -> None:
    host = f"127.0.0.1:{listener.port}"
    mirror_run.config([{"source": f"{host}/a", "targets": [f"{host}/b"]}], registries={host: {"plain-http": True}})
    ran = mirror_run("validate", mirror_run.config_file)
    assert (0, "") == (ran.code, ran.err)
    assert 0 == listener.accepted
