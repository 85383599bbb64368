"""Where credentials are found."""

from __future__ import annotations

import base64
import errno
import json
import os
import pwd
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mirror.errors import AuthError, ConfigError, LocalError
from mirror.oci.reference import Repository
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.docker_config import MAX_BYTES, config_files, home_directory, normalize_host
from mirror.registry.http.host_settings import HostSettings, PathLogin, Secret

HOST = "reg.example.com"
APP = "team/app"
HUB_V1 = "https://index.docker.io/v1/"


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def entry(user: str, word: str = "secret") -> dict[str, str]:
    return {"auth": b64(f"{user}:{word}")}


@pytest.fixture
def docker(tmp_path: Path) -> Callable[..., CredentialSource]:
    """Return a function that creates a source with this docker configuration: a document, or the bytes of the file."""

    def make(document: Any = None, hosts: dict[str, HostSettings] | None = None, **environ: str) -> CredentialSource:
        folder = tmp_path / "home" / ".docker"
        folder.mkdir(parents=True, exist_ok=True)
        if document is not None:
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            (folder / "config.json").write_bytes(data)
        return CredentialSource(hosts or {}, {"HOME": str(tmp_path / "home"), **environ})

    return make


def user(found: Credential | None) -> str | None:
    return found.username if found else None


# --- files


def test_without_a_file_there_are_no_credentials(docker: Callable[..., CredentialSource]) -> None:
    source = docker()
    source.check_docker_files([Repository(HOST, APP)])
    assert source.find(HOST) is None
    assert "~/.docker/config.json" == source.searched_files


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}" + b" " * MAX_BYTES, "larger than"),
        (b'{"auths": []}', "auths is not an object"),
        (b'{"credHelpers": "x"}', "credHelpers is not an object"),
        (b'{"credsStore": 1}', "credsStore is not a string"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_invalid_file_is_an_error_and_does_not_mean_anonymous(
    docker: Callable[..., CredentialSource], data: bytes, why: str
) -> None:
    source = docker(data)
    with pytest.raises(ConfigError, match=rf"~/\.docker/config\.json.* {why}"):
        source.check_docker_files([Repository(HOST, APP)])
    with pytest.raises(AuthError, match=why):
        source.find(HOST)


def test_too_many_open_files_are_not_an_error_of_the_file(
    docker: Callable[..., CredentialSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = docker(b"{}")

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(LocalError) as caught:
        source.check_docker_files([Repository(HOST, APP)])
    assert (4, True) == (caught.value.exit_code, "ulimit -n" in caught.value.hint)


def test_a_file_that_is_a_directory_is_an_error(docker: Callable[..., CredentialSource], tmp_path: Path) -> None:
    (tmp_path / "home/.docker/config.json").mkdir(parents=True)
    with pytest.raises(AuthError, match="cannot be read"):
        docker().find(HOST)


def test_a_world_readable_file_is_read(docker: Callable[..., CredentialSource], tmp_path: Path) -> None:
    source = docker({"auths": {HOST: entry("acme")}})
    (tmp_path / "home/.docker/config.json").chmod(0o644)
    assert "acme" == user(source.find(HOST))


def test_docker_config_selects_another_directory(docker: Callable[..., CredentialSource], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"auths": {HOST: entry("other")}}))
    source = docker({"auths": {HOST: entry("home")}}, DOCKER_CONFIG=str(other))
    assert "other" == user(source.find(HOST))
    assert str(other / "config.json") == source.searched_files


def test_the_podman_file_is_read_only_if_its_variable_is_set_and_after_the_docker_file(
    docker: Callable[..., CredentialSource], tmp_path: Path
) -> None:
    (tmp_path / "containers").mkdir()
    podman = tmp_path / "containers" / "auth.json"
    podman.write_text(json.dumps({"auths": {HOST: entry("podman"), "other.example": entry("podman")}}))
    document = {"auths": {HOST: entry("docker")}}
    assert docker(document, XDG_RUNTIME_DIR=str(tmp_path)).find("other.example") is None
    source = docker(document, REGISTRY_AUTH_FILE=str(podman))
    assert ["docker", "podman"] == [user(source.find(host)) for host in (HOST, "other.example")]
    assert f"~/.docker/config.json or {podman}" == source.searched_files


def test_without_home_the_user_database_is_used() -> None:
    own = pwd.getpwuid(os.getuid()).pw_dir
    assert Path(own) == home_directory({}) == home_directory({"HOME": ""}) == home_directory({"HOME": "relative"})
    assert [Path(own, ".docker/config.json")] == config_files({})


def test_the_variable_docker_auth_config_is_not_read(docker: Callable[..., CredentialSource]) -> None:
    source = docker(DOCKER_AUTH_CONFIG=json.dumps({"auths": {HOST: entry("variable")}}))
    assert source.find(HOST) is None


# --- entries

KEYS: list[tuple[str, list[str], str, str, str | None]] = [
    # case, keys of auths (the user of each is its number), host, repository, key that applies
    ("the bare host", [HOST], HOST, "a/b", HOST),
    ("with scheme and v2", [f"https://{HOST}/v2/"], HOST, "a/b", f"https://{HOST}/v2/"),
    ("with v1", [f"{HOST}/v1/"], HOST, "a/b", f"{HOST}/v1/"),
    ("with any path after a scheme", [f"https://{HOST}/some/path"], HOST, "a/b", f"https://{HOST}/some/path"),
    ("in capitals", ["Reg.Example.COM"], HOST, "a/b", "Reg.Example.COM"),
    ("the exact spelling before others", ["REG.example.com", f"https://{HOST}", HOST], HOST, "a/b", HOST),
    ("else the first", [f"https://{HOST}", f"http://{HOST}"], HOST, "a/b", f"https://{HOST}"),
    ("with the scheme's port", [f"{HOST}:443"], HOST, "a/b", f"{HOST}:443"),
    ("asked for with the scheme's port", [HOST], f"{HOST}:443", "a/b", HOST),
    ("with a port", [f"{HOST}:5000"], f"{HOST}:5000", "a/b", f"{HOST}:5000"),
    ("not for another port", [HOST], f"{HOST}:5000", "a/b", None),
    ("not from another port", [f"{HOST}:5000"], HOST, "a/b", None),
    ("not for a sub-domain", [HOST], f"sub.{HOST}", "a/b", None),
    ("not for a longer name", [HOST], f"{HOST}.evil", "a/b", None),
    ("not for a parent", [f"sub.{HOST}"], HOST, "a/b", None),
    ("longest path first", [HOST, f"{HOST}/a", f"{HOST}/a/b"], HOST, "a/b/c", f"{HOST}/a/b"),
    ("the repository itself", [HOST, f"{HOST}/a/b"], HOST, "a/b", f"{HOST}/a/b"),
    ("not a part of a name", [HOST, f"{HOST}/team"], HOST, "teams/x", HOST),
    ("not another path", [f"{HOST}/team"], HOST, "other/x", None),
    ("no repository", [f"{HOST}/team", HOST], HOST, "", HOST),
    ("Hub as docker spells it", [HUB_V1], "docker.io", "a/b", HUB_V1),
    ("Hub's own key first", ["docker.io", "index.docker.io", HUB_V1], "docker.io", "a/b", HUB_V1),
    ("Hub's other names", ["registry-1.docker.io"], "docker.io", "a/b", "registry-1.docker.io"),
    ("Hub's index", ["index.docker.io"], "docker.io", "a/b", "index.docker.io"),
    ("Hub by path", [HUB_V1, "docker.io/acme"], "docker.io", "acme/x", "docker.io/acme"),
    ("an IPv6 address", ["[::1]:5000"], "[::1]:5000", "a/b", "[::1]:5000"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "host", "repository", "expected"), [k[1:] for k in KEYS], ids=[k[0] for k in KEYS])
def test_an_entry_applies_to_its_host_and_path_only(
    docker: Callable[..., CredentialSource], keys: list[str], host: str, repository: str, expected: str | None
) -> None:
    source = docker({"auths": {key: entry(f"user {number}") for number, key in enumerate(keys)}})
    found = user(source.find(host, repository))
    assert expected == (keys[int(found.removeprefix("user "))] if found else None)


def test_with_plain_http_port_80_may_be_omitted(docker: Callable[..., CredentialSource]) -> None:
    document = {"auths": {f"{HOST}:80": entry("http"), f"{HOST}:443": entry("https")}}
    source = docker(document, {HOST: HostSettings(HOST, plain_http=True)})
    assert "http" == user(source.find(HOST))


VALUES: list[tuple[str, dict[str, Any], Credential]] = [
    ("a colon in the password", entry("u", "a:b:c"), Credential("u", "a:b:c")),
    ("NULs after the password", entry("u", "p\0\0"), Credential("u", "p")),
    ("a newline stays", entry("u", "p\n"), Credential("u", "p\n")),
    ("UTF-8", entry("ü", "pässwörd€"), Credential("ü", "pässwörd€")),
    ("line breaks in base64", {"auth": "dTpw\n"}, Credential("u", "p")),
    ("no auth but its parts", {"username": "u", "password": "p"}, Credential("u", "p")),
    ("auth before its parts", {**entry("u", "p"), "username": "x", "password": "y"}, Credential("u", "p")),
    ("an empty password", {"auth": b64("u:")}, Credential("u")),
    ("an identity token", {"identitytoken": "t"}, Credential(identity_token="t")),
    ("an identity token and a user", {"auth": b64("u:"), "identitytoken": "t"}, Credential("u", identity_token="t")),
    ("the user of identity tokens", entry("<token>", "t"), Credential(identity_token="t")),
    ("a registry token", {"registrytoken": "r"}, Credential(registry_token="r")),
]


@pytest.mark.parametrize(("value", "expected"), [v[1:] for v in VALUES], ids=[v[0] for v in VALUES])
def test_an_entry_is_parsed_as_docker_does(
    docker: Callable[..., CredentialSource], value: dict[str, Any], expected: Credential
) -> None:
    found = docker({"auths": {HOST: value}}).find(HOST)
    assert found is not None
    assert "~/.docker/config.json" == found.origin
    assert (expected.username, expected.password, expected.identity_token, expected.registry_token) == (
        found.username,
        found.password,
        found.identity_token,
        found.registry_token,
    )


@pytest.mark.parametrize(
    "value",
    ["text", {"auth": 1}, {"auth": "!!!"}, {"auth": "dXNlcg"}, {"auth": b64("no-colon")}, {"auth": b64(b"u:\xff")}],
    ids=str,
)
def test_an_invalid_entry_is_an_error_for_its_host_only(docker: Callable[..., CredentialSource], value: Any) -> None:
    source = docker({"auths": {HOST: value, "other.example": entry("other")}})
    with pytest.raises(AuthError, match=r"reg\.example\.com") as caught:
        source.find(HOST)
    assert "no-colon" not in str(caught.value)
    assert "other" == user(source.find("other.example"))


def test_entries_without_a_secret_are_skipped(docker: Callable[..., CredentialSource]) -> None:
    document = {"auths": {HOST: {}, f"https://{HOST}": {"email": "x@example"}, f"http://{HOST}": entry("u")}}
    assert "u" == user(docker(document).find(HOST))


# --- our own configuration


def settings_with(secret: Secret, username: str = "acme") -> dict[str, HostSettings]:
    return {HOST: HostSettings(HOST, username=username, password=secret)}


def test_our_own_configuration_takes_precedence(docker: Callable[..., CredentialSource]) -> None:
    source = docker({"auths": {HOST: entry("docker")}}, settings_with(Secret("env HUB_TOKEN", plain="p")))
    found = source.find(HOST)
    assert found is not None
    assert "user acme, password from env HUB_TOKEN" == found.description


def test_docker_files_are_not_read_if_our_own_configuration_has_credentials(
    docker: Callable[..., CredentialSource],
) -> None:
    source = docker(b"broken", settings_with(Secret("configuration", plain="p")))
    source.check_docker_files([Repository(HOST, APP)])
    assert "acme" == user(source.find(HOST))
    with pytest.raises(ConfigError):
        source.check_docker_files([Repository(HOST, APP), Repository("other.example", APP)])


def test_a_password_is_read_on_first_use_and_again_only_on_a_fresh_lookup(
    docker: Callable[..., CredentialSource], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    source = docker(None, settings_with(Secret(f"file {file}", file=file)))
    file.write_text("first\n")
    seen = [source.find(HOST)]
    file.write_text("second\n")
    seen += [source.find(HOST), source.find(HOST, fresh=True), source.find(HOST)]
    assert ["first", "first", "second", "second"] == [one.password for one in seen if one]


def test_a_password_that_no_longer_exists_is_an_error(docker: Callable[..., CredentialSource], tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="missing"):
        docker(None, settings_with(Secret("file", file=tmp_path / "missing"))).find(HOST)


def test_the_docker_file_is_read_again_only_on_a_fresh_lookup(
    docker: Callable[..., CredentialSource], tmp_path: Path
) -> None:
    source = docker({"auths": {HOST: entry("u", "first")}})
    seen = [source.find(HOST)]
    (tmp_path / "home/.docker/config.json").write_text(json.dumps({"auths": {HOST: entry("u", "second")}}))
    seen += [source.find(HOST), source.find(HOST, fresh=True)]
    assert ["first", "first", "second"] == [one.password for one in seen if one]


# --- secrets


def test_no_repr_contains_a_secret_and_all_secrets_are_known(docker: Callable[..., CredentialSource]) -> None:
    told: list[tuple[str, str | None]] = []
    document = {"auths": {"a.example": entry("u", "PW"), "b.example": {"identitytoken": "ID", "registrytoken": "RT"}}}
    source = docker(document)
    source = CredentialSource({}, source._environ, on_secret=lambda secret, name: told.append((secret, name)))
    found = [source.find(host) for host in ("a.example", "b.example", "a.example")]
    assert not [secret for secret in ("PW", "ID", "RT") if secret in repr(found)]
    assert {"PW", "ID", "RT"} == source.known_secrets()
    assert [("ID", None), ("PW", "u"), ("RT", None)] == sorted(told)


# --- helpers


@pytest.fixture
def helper(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that adds a helper in PATH, and returns a file that gets one line for each run."""

    def make(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        runs = tmp_path / f"{name}.runs"
        program = folder / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\nserver=$(cat)\necho "$1 $server" >> {runs}\n{script}\n')
        program.chmod(0o755)
        return runs

    return make


def helper_path(tmp_path: Path) -> str:
    return f"{tmp_path / 'bin'}:/usr/bin:/bin"


def print_login(name: str, word: str = "s") -> str:
    return f"""echo '{{"ServerURL": "", "Username": "{name}", "Secret": "{word}"}}'"""


def test_a_helper_takes_precedence_over_the_store_and_the_store_over_entries(
    docker: Callable[..., CredentialSource], helper: Callable[[str, str], Path], tmp_path: Path
) -> None:
    helper("own", print_login("own"))
    helper(
        "store",
        "case $server in store.example) " + print_login("store") + ";; *) echo credentials not found; exit 1;; esac",
    )
    document = {
        "credHelpers": {f"https://{HOST}": "own"},
        "credsStore": "store",
        "auths": {HOST: entry("file"), "store.example": entry("file"), "file.example": entry("file")},
    }
    source = docker(document, PATH=helper_path(tmp_path))
    hosts = (HOST, "store.example", "file.example", "nobody.example")
    assert ["own", "store", "file", None] == [user(source.find(host)) for host in hosts]


def test_a_helper_receives_the_docker_name_of_docker_hub(
    docker: Callable[..., CredentialSource], helper: Callable[[str, str], Path], tmp_path: Path
) -> None:
    runs = helper("store", print_login("acme"))
    source = docker({"credsStore": "store"}, PATH=helper_path(tmp_path))
    found = source.find("docker.io")
    assert found is not None
    assert "user acme, password from docker-credential-store" == found.description
    assert f"get {HUB_V1}\n" == runs.read_text()


def test_the_secret_of_the_user_token_is_an_identity_token(
    docker: Callable[..., CredentialSource], helper: Callable[[str, str], Path], tmp_path: Path
) -> None:
    helper("acr", print_login("<token>", "id"))
    found = docker({"credHelpers": {HOST: "acr"}}, PATH=helper_path(tmp_path)).find(HOST)
    assert found is not None
    assert ("id", None, None) == (found.identity_token, found.username, found.password)


def test_a_helper_runs_once_for_many_threads_and_again_on_a_fresh_lookup(
    docker: Callable[..., CredentialSource], helper: Callable[[str, str], Path], tmp_path: Path
) -> None:
    runs = helper("slow", "sleep 0.2\n" + print_login("u"))
    source = docker({"credHelpers": {HOST: "slow"}}, PATH=helper_path(tmp_path))
    together = threading.Barrier(12)

    def find(_: int) -> str | None:
        together.wait(60)
        return user(source.find(HOST))

    with ThreadPoolExecutor(12) as pool:
        assert ["u"] * 12 == list(pool.map(find, range(12)))
    source.find(HOST)
    assert 1 == len(runs.read_text().splitlines())
    source.find(HOST, fresh=True)
    assert 2 == len(runs.read_text().splitlines())


@pytest.mark.parametrize("name", ["failing", "missing", "../evil", "a b", "", "/bin/sh", 7], ids=str)
def test_a_failed_helper_does_not_mean_no_credentials(
    docker: Callable[..., CredentialSource], helper: Callable[[str, str], Path], tmp_path: Path, name: Any
) -> None:
    runs = helper("failing", "echo secret-on-stdout; exit 1")
    document = {"credHelpers": {HOST: name}, "auths": {HOST: entry("file")}}
    source = docker(document, PATH=helper_path(tmp_path))
    for _ in range(3):
        with pytest.raises(AuthError) as caught:
            source.find(HOST)
        assert "secret-on-stdout" not in str(caught.value)
    assert (1 if name == "failing" else 0) == (len(runs.read_text().splitlines()) if runs.exists() else 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(HUB_V1, "docker.io"), ("https://Reg.example.com:443/v2/", HOST), (f"{HOST}:80", f"{HOST}:80"), ("", "")],
)
def test_a_key_is_normalized_to_a_host(text: str, expected: str) -> None:
    assert expected == normalize_host(text)


# --- credentials for paths


def _with_paths(**logins: str) -> dict[str, HostSettings]:
    """Return settings in which each path has a user of this name; `host` is the user of the host."""
    host = logins.pop("host", None)
    paths = tuple(PathLogin(path, name, Secret("plain", plain=f"{name}-word")) for path, name in logins.items())
    own = Secret("plain", plain="host-word") if host else None
    return {HOST: HostSettings(HOST, username=host, password=own, paths=paths)}


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("team", "a"),
        ("team/app", "a"),
        ("team/app/deep", "b"),
        ("team/app/deep/er", "b"),
        ("team/app/deeper", "a"),
        ("team-b/app", "h"),
        ("other/team/app", "h"),
        ("", "h"),
    ],
)
def test_the_longest_path_of_whole_components_counts(
    docker: Callable[..., CredentialSource], repository: str, expected: str
) -> None:
    source = docker(None, _with_paths(host="h", **{"team": "a", "team/app/deep": "b"}))
    assert expected == user(source.find(HOST, repository))


def test_a_repository_outside_the_paths_uses_dockers_configuration(docker: Callable[..., CredentialSource]) -> None:
    document = {"auths": {HOST: entry("docker"), f"{HOST}/team/app": entry("docker-team")}}
    source = docker(document, _with_paths(team="a"))
    found = [user(source.find(HOST, one)) for one in ("team/app", "teams", "")]
    assert ["a", "docker", "docker"] == found


def test_dockers_configuration_is_read_only_if_a_repository_needs_it(docker: Callable[..., CredentialSource]) -> None:
    source = docker(b"{", _with_paths(team="a"))
    source.check_docker_files([Repository(HOST, "team/app")])
    with pytest.raises(ConfigError, match="not valid JSON"):
        source.check_docker_files([Repository(HOST, "team/app"), Repository(HOST, "other")])


def test_the_secrets_of_all_paths_are_passed_on_for_redaction(docker: Callable[..., CredentialSource]) -> None:
    source = docker(None, _with_paths(host="h", team="a"))
    source.find(HOST, "team/app")
    source.find(HOST)
    assert {"a-word", "host-word"} == source.known_secrets()


def test_each_path_caches_its_own_credentials(
    docker: Callable[..., CredentialSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "old")
    login = PathLogin("team", "a", Secret("env WORD", env="WORD"))
    source = docker(None, {HOST: HostSettings(HOST, username="h", password=Secret("x", plain="y"), paths=(login,))})
    passwords = []
    for word, fresh in (("old", False), ("new", False), ("new", True)):
        monkeypatch.setenv("WORD", word)
        found = source.find(HOST, "team/app", fresh=fresh)
        passwords.append(found and found.password)
        assert "h" == user(source.find(HOST, "other"))
    assert ["old", "old", "new"] == passwords
