"""The keys `create` and `login` of a registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mirror.config import Config, ConfigErrors, load
from mirror.registry.http.host_settings import EcrRepositorySettings, HarborProjectSettings

HOST = "b.example.com"


def load_registry(folder: Path, settings: str, host: str = HOST) -> Config:
    path = folder / "mirror.yaml"
    mirrors = f"- {{source: a.example.com/app, targets: [{host}/x/app]}}"
    path.write_text(f"version: 1\nregistries:\n  {host}: {{{settings}}}\nmirrors:\n{mirrors}\n")
    return load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("create: ecr", EcrRepositorySettings()),
        ("create: {type: ecr}", EcrRepositorySettings()),
        (
            "create: {type: ecr, immutable-tags: true, scan-on-push: false, kms-key: alias/k, tags: {a: b}, "
            "endpoint: 'https://vpce.example.com:8443/path'}",
            EcrRepositorySettings(True, False, "alias/k", {"a": "b"}, "https://vpce.example.com:8443/path"),
        ),
        ("create: harbor", HarborProjectSettings()),
        (
            "create: {type: harbor, public: true, scan-on-push: true, storage-limit: 5 GiB}",
            HarborProjectSettings(True, True, 5 << 30),
        ),
        ("parallel: 2", None),
    ],
)
def test_the_settings_of_new_repositories(
    text: str, expected: EcrRepositorySettings | HarborProjectSettings | None, tmp_path: Path
) -> None:
    assert expected == load_registry(tmp_path, text).settings_for(HOST).create


def test_a_login_at_ecr_needs_no_other_credentials(tmp_path: Path) -> None:
    assert "ecr" == load_registry(tmp_path, "login: ecr").settings_for(HOST).login
    assert "" == load_registry(tmp_path, "parallel: 2").settings_for(HOST).login


@pytest.mark.parametrize(
    "endpoint",
    ["api.example.com", "ftp://a.example.com", "https://", "https://u:p@a.example.com", "https://a.example.com?x=1"],
)
def test_an_endpoint_is_the_url_of_a_host(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="not the URL of an endpoint"):
        load_registry(tmp_path, f"create: {{type: ecr, endpoint: '{endpoint}'}}")


@pytest.mark.parametrize(("text", "key"), [("create: ecr", "create"), ("login: ecr", "login")])
def test_without_boto3_the_message_says_what_to_install(
    text: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigErrors) as caught:
        load_registry(tmp_path, text)
    (problem,) = caught.value.problems
    assert f'registries."{HOST}".{key}' == problem.path
    assert "ecr needs the extra `aws`: pip install 'mirror[aws]'" == problem.message
    assert 2 == caught.value.exit_code
    assert load_registry(tmp_path, "create: harbor").mirrors


@pytest.mark.parametrize(("endpoint", "warnings"), [("http://127.0.0.1:4566", 0), ("http://api.example.com", 1)])
def test_an_endpoint_without_tls_causes_a_warning(endpoint: str, warnings: int, tmp_path: Path) -> None:
    found = load_registry(tmp_path, f"create: {{type: ecr, endpoint: '{endpoint}'}}").warnings
    assert warnings == len([one for one in found if "passwords from AWS are sent unencrypted" in one])
