"""Configurations: which files are errors, where and why; and the values of valid files."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.config import (
    Config,
    ConfigErrors,
    ConfigProblem,
    LogConfig,
    Parallel,
    Position,
    load,
    schema,
    schema_text,
    state_directory,
    yaml_reader,
)
from mirror.config.tree import to_plain
from mirror.errors import ConfigError, LocalError, MirrorError
from mirror.limits import Rate
from mirror.oci.digest import Digest
from mirror.oci.platform import Platform
from mirror.oci.platform_filter import PlatformFilter
from mirror.oci.reference import Repository
from mirror.registry.http.host_settings import HostSettings, V1Mode
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.repository_rules import RepositoryRules
from mirror.selection.tag_rules import TagRules
from tests.support.bad_configs import CANARY, CASES, HEAD, MIRROR, PUBLIC_KEY, Case
from tests.support.signing import signing_key

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


def write(tmp_path: Path, text: str | bytes, name: str = "mirror.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)
    return path


def load_text(tmp_path: Path, text: str) -> Config:
    return load(write(tmp_path, text))


def load_errors(path: Path) -> ConfigErrors:
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    return caught.value


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's permission to read all files."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- invalid files ----


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_an_invalid_file_is_an_error_with_position_reason_and_remedy(case: Case, tmp_path: Path) -> None:
    path = write(tmp_path, case.text)
    for name, content in case.files.items():
        write(tmp_path, content, name)
    started = time.thread_time()
    error = load_errors(path)
    assert 2 == error.exit_code
    assert "config_invalid" == error.code
    text = str(error)
    assert text.startswith(f"{path}:{case.at}: "), text
    assert [] == [words for words in case.says if words not in f"{text}\n"], text
    assert CANARY not in text
    assert CANARY not in repr(error)
    assert time.thread_time() - started < 5, "a bad file must not cost time"


def test_the_corpus_has_more_than_fifty_cases_of_different_names() -> None:
    assert len({case.id for case in CASES}) == len(CASES) > 50


def test_all_problems_of_a_file_are_listed_by_position(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "version: 1\nparallel: {images: 0}\nregistrys: {}\nmirrors:\n"
        "- source: a.example.com/App\n  targets: b.example.com/app\n  tags: [1.10]\n",
    )
    error = load_errors(path)
    assert [2, 3, 5, 6, 7] == [problem.position.line for problem in error.problems]
    assert (
        ConfigProblem(Position(str(path), 3, 1), "", 'unknown key "registrys"; did you mean "registries"?')
        == error.problems[1]
    )
    assert 5 == len(str(error).splitlines())


def test_fifty_problems_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    entries = "".join(f"- source: a.example.com/app-{i}\n  target: [b.example.com/app-{i}]\n" for i in range(2_000))
    lines = str(load_errors(write(tmp_path, f"{HEAD}mirrors:\n{entries}"))).splitlines()
    assert 51 == len(lines)
    assert "and 1950 more" == lines[-1]


def test_a_bad_entry_at_the_end_of_ten_thousand_is_found(tmp_path: Path) -> None:
    entries = "".join(f"- source: a.example.com/app-{i}\n  targets: [b.example.com/app-{i}]\n" for i in range(10_000))
    error = load_errors(write(tmp_path, f"{HEAD}mirrors:\n{entries}- source: x\n"))
    assert ["mirrors[10000]"] == [problem.path for problem in error.problems]


def test_an_invalid_tag_is_not_reported_again_as_a_conflict(tmp_path: Path) -> None:
    text = f"{HEAD}{MIRROR}  tags: [1.10]\n- source: c.example.com/app:v1\n  targets: [b.example.com/app]\n"
    assert ["mirrors[0].tags[0]"] == [problem.path for problem in load_errors(write(tmp_path, text)).problems]


def test_errors_of_a_file_stay_complete_with_a_subject(tmp_path: Path) -> None:
    error = load_errors(write(tmp_path, HEAD))
    assert error is error.with_subject("anything")


def test_an_absent_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"configuration not found: .*nope\.yaml"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="configuration not found"):
        load(write(tmp_path, HEAD) / "below-a-file")


def test_a_pipe_or_directory_is_an_error_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ConfigError, match="not a regular file"):
            load(name)


def test_the_error_for_a_loop_of_links_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="too many levels of symbolic links"):
        load(tmp_path / "a")


def test_an_unreadable_file_is_a_local_error(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + MIRROR)
    path.chmod(0)
    with as_nobody(), pytest.raises(LocalError, match="permission denied") as caught:
        load(path)
    assert 4 == caught.value.exit_code


@given(st.binary(max_size=200) | st.text(alphabet="[]{}:,-#&*!|>'\"%@` \nab01.~<", max_size=80).map(str.encode))
@settings(max_examples=300)
def test_arbitrary_input_raises_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp(), data, f"any-{os.getpid()}.yaml")
    with pytest.raises(MirrorError) as caught:  # none of these is a whole configuration
        load(path)
    assert 2 == caught.value.exit_code


# ---- valid files ----


def test_a_small_file_has_the_documented_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + MIRROR)
    config = load(path)
    assert (None, None, None) == (config.state, config.spool, config.spool_max)
    assert LogConfig(None, "info", 50 << 20, 10) == config.log
    assert Parallel(4, 6, 8) == config.parallel
    assert {} == dict(config.registries)
    assert HostSettings("a.example.com") == config.settings_for("a.example.com")
    (mirror,) = config.mirrors
    assert Position(str(path), 3, 3) == mirror.position
    assert "mirrors[0]" == mirror.path
    assert Repository("a.example.com", "app") == mirror.source
    assert (Repository("b.example.com", "app"),) == mirror.targets
    assert TagRules() == mirror.tags
    assert "copy" == mirror.schema1
    assert () == config.warnings
    assert Digest.of(path.read_bytes()).hex == config.text_hash


def test_every_key_with_an_effect_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "secret")
    config = load_text(
        tmp_path,
        """\
version: 1
state: state
spool: /var/tmp/spool
spool-max: 1.5 GB
log: {file: log/mirror.log, level: debug, max-size: 1 KiB, backups: 0}
parallel: {images: 1, downloads: 2, uploads: 64}
registries:
  docker.io:
    username: acme
    password: {env: HUB_TOKEN}
    parallel: 3
    rate: 100/m
    proxy: http://proxy.example.com:3128
    timeouts: {connect: 500 ms, idle: 5 min}
    token-realms: [auth.example.com:443]
    allow-hosts: [cdn.example.com]
    mount: false
    exclusive: yes
    v1: never
    v1-checksums: warn
  localhost:5000: {plain-http: true}
  "[::1]:5000": {}
defaults: {schema1: fail, tags: {exclude: ['.*-rc']}, foreign-layers: skip, v1: never}
mirrors:
  - source: alpine
    targets: [localhost:5000/hub/alpine]
  - source: alpine:3.20
    targets: [localhost:5000/hub/one]
    schema1: copy
  - source: alpine@sha256:%s
    targets: [localhost:5000/hub/two]
    schema1: convert
    v1: per-tag
  - source: alpine
    tags: {include: ['3\\..*'], exclude: []}
    targets: [localhost:5000/hub/three]
  - source: alpine
    tags: [v1, "1.10"]
    targets: [localhost:5000/hub/four]
"""
        % ("a" * 64),
    )
    assert tmp_path / "state" == config.state == state_directory(config)
    assert Path("/var/tmp/spool") == config.spool
    assert 1_500_000_000 == config.spool_max
    assert LogConfig(tmp_path / "log/mirror.log", "debug", 1024, 0) == config.log
    assert Parallel(1, 2, 64) == config.parallel
    hub = config.settings_for("docker.io")
    assert hub.password is not None
    assert "secret" == hub.password.reveal()
    expected = HostSettings(
        "docker.io",
        username="acme",
        password=hub.password,
        parallel=3,
        rate=Rate(100, 60.0),
        proxy="http://proxy.example.com:3128",
        connect_timeout=0.5,
        idle_timeout=300.0,
        token_realms=frozenset({"auth.example.com"}),
        allow_hosts=frozenset({"cdn.example.com"}),
        mount=False,
        exclusive=True,
        v1=V1Mode.NEVER,
        v1_checksums="warn",
    )
    assert expected == hub
    assert HostSettings("localhost:5000", plain_http=True) == config.settings_for("localhost:5000")
    assert {"docker.io", "localhost:5000", "[::1]:5000"} == set(config.registries)
    assert [
        TagRules(exclude=(".*-rc",)),
        TagRules(("3.20",)),
        TagRules(digest=Digest("sha256:" + "a" * 64)),
        TagRules(include=("3\\..*",)),
        TagRules(("v1", "1.10")),
    ] == [mirror.tags for mirror in config.mirrors]
    assert ["fail", "copy", "convert", "fail", "fail"] == [mirror.schema1 for mirror in config.mirrors]
    assert [V1Mode.NEVER, V1Mode.NEVER, V1Mode.PER_TAG, V1Mode.NEVER, V1Mode.NEVER] == [
        mirror.v1 for mirror in config.mirrors
    ]


@pytest.mark.parametrize(
    ("written", "rules"),
    [
        ("{semver: '>=2 <4'}", TagRules(semver=(">=2 <4",))),
        ("{semver: [1.x, '>= 3']}", TagRules(semver=("1.x", ">= 3"))),
        ("{newest: 5}", TagRules(newest=5)),
        ("{newest: {count: 5}}", TagRules(newest=5)),
        ("{newest: {count: 5, by: version}}", TagRules(newest=5)),
        ("{newest: {count: 5, by: created}}", TagRules(newest=5, by_created=True)),
        ("{min-age: 1.5 h}", TagRules(min_age=5400.0)),
        ("{min-tags: 2, max-tags: 3}", TagRules(min_tags=2, max_tags=3)),
        ("{min-tags: 0, max-tags: 1, newest: 1}", TagRules(newest=1, max_tags=1)),
        (
            "{include: [a], exclude: [b], semver: '*', min-age: 3 d, newest: 1, immutable: [c], allow-empty: true}",
            TagRules(
                include=("a",),
                exclude=("b",),
                semver=("*",),
                min_age=3 * 86400.0,
                newest=1,
                immutable=("c",),
                allow_empty=True,
            ),
        ),
    ],
)
def test_the_rules_for_tags_are_read(written: str, rules: TagRules, tmp_path: Path) -> None:
    config = load_text(tmp_path, f"{HEAD}{MIRROR}  tags: {written}\n")
    assert (rules, ()) == (config.mirrors[0].tags, config.warnings)
    shared = load_text(tmp_path, f"{HEAD}defaults: {{tags: {written}}}\n{MIRROR}")
    assert rules == shared.mirrors[0].tags


def test_a_named_tag_outside_of_a_range_may_share_its_repository(tmp_path: Path) -> None:
    other = "- source: c.example.com/app\n  targets: [b.example.com/app]\n  tags: [v1.9, latest]\n"
    config = load_text(tmp_path, f"{HEAD}{MIRROR}  tags: {{semver: '>=2'}}\n{other}")
    assert [TagRules(semver=(">=2",)), TagRules(("v1.9", "latest"))] == [mirror.tags for mirror in config.mirrors]


def test_all_spellings_of_a_registry_have_one_name(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        f"""{HEAD}registries:
  A.example.com.:443: {{parallel: 1}}
  b.example.com: {{plain-http: true}}
  c.example.com:443: {{plain-http: true}}
  d.example.com:80: {{plain-http: true}}
mirrors:
  - source: a.example.com/x
    targets:
      - b.example.com:80/x
      - b.example.com:443/x
      - c.example.com:443/x
      - c.example.com/x
      - d.example.com:80/x
      - e.example.com:80/x
""",
    )
    assert 1 == config.settings_for(config.mirrors[0].source.host).parallel
    assert [
        "b.example.com",
        "b.example.com:443",  # plain http on 443 by name is another registry than https
        "c.example.com:443",
        "c.example.com",
        "d.example.com:80",
        "e.example.com:80",
    ] == [target.host for target in config.mirrors[0].targets]


@pytest.mark.parametrize("spelling", ["x/../o.tar", "linked-directory/o.tar", "linked-file.tar", "./o.tar"])
def test_all_paths_of_a_bundle_file_are_one_store(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/linked-directory").symlink_to(tmp_path / "d")
    (tmp_path / "d/linked-file.tar").symlink_to("o.tar")
    (tmp_path / "d/x").mkdir()
    mirrors = [
        f"- {{source: a.example.com/{name}, targets: [{file}]}}\n" for name, file in (("a", spelling), ("b", "o.tar"))
    ]
    config = load_text(tmp_path / "d", f"{HEAD}mirrors:\n{''.join(mirrors)}")
    assert {str(tmp_path.resolve() / "d/o.tar")} == {target.host for one in config.mirrors for target in one.targets}


def test_a_loop_of_links_as_a_bundle_is_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "o.tar").symlink_to("o.tar")
    config = load_text(tmp_path, f"{HEAD}mirrors:\n- {{source: a.example.com/a, targets: [o.tar, 'oci:o.tar']}}\n")
    assert 2 == len(config.mirrors[0].targets)


def test_byte_order_mark_and_carriage_returns_are_accepted(tmp_path: Path) -> None:
    text = "\ufeff" + (HEAD + MIRROR).replace("\n", "\r\n")
    assert 1 == len(load(write(tmp_path, text.encode())).mirrors)


def test_anchors_and_merges_are_accepted_and_own_keys_take_precedence(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        f"""{HEAD}registries:
  a.example.com: &quick {{parallel: 2, rate: 1/s}}
  b.example.com: {{<<: *quick, parallel: 3}}
mirrors:
  - {{source: a.example.com/x, targets: [b.example.com/x], tags: &tags [v1]}}
  - {{source: a.example.com/y, targets: [b.example.com/y], tags: *tags}}
""",
    )
    assert HostSettings("b.example.com", parallel=3, rate=Rate(1, 1.0)) == config.settings_for("b.example.com")
    assert config.mirrors[0].tags == config.mirrors[1].tags == TagRules(("v1",))


def test_paths_in_a_linked_file_are_relative_to_the_directory_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    write(tmp_path / "..data", f"{HEAD}state: state\n{MIRROR}")
    (tmp_path / "mirror.yaml").symlink_to("..data/mirror.yaml")
    assert tmp_path / "state" == load(tmp_path / "mirror.yaml").state


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joe")
    assert Path("/home/joe/state") == load_text(tmp_path, f"{HEAD}state: ~/state\n{MIRROR}").state
    path = write(tmp_path, f"{HEAD}state: ~no-such-user/state\n{MIRROR}")
    assert "state: `~` cannot be expanded, because there is no home directory" in str(load_errors(path))


def test_dollar_signs_without_a_variable_name_are_kept(tmp_path: Path) -> None:
    settings = "username: $joe, password: 'pa$$word$X'"
    config = load_text(tmp_path, f"{HEAD}state: a$/$1\nregistries:\n  b.example.com: {{{settings}}}\n{MIRROR}")
    assert tmp_path / "a$" / "$1" == config.state
    host = config.settings_for("b.example.com")
    assert host.password is not None
    assert ("$joe", "pa$$word$X") == (host.username, host.password.reveal())


def test_lists_of_different_tags_may_share_a_repository(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        f"{HEAD}{MIRROR}  tags: [v1]\n- source: c.example.com/app\n  targets: [b.example.com/app]\n  tags: [v2]\n"
        f"- source: d.example.com/app@sha256:{'a' * 64}\n  targets: [b.example.com/app]\n"
        "- source: e.example.com/app\n  targets: [b.example.com/app]\n  tags: {include: ['x.*']}\n",
    )
    assert 4 == len(config.mirrors)


@pytest.mark.parametrize(
    ("mirrors", "warned"),
    [
        ([("a.example.com/team/*", "a.example.com/copy/*")], False),
        ([("a.example.com/team/*", "a.example.com/team-copy/*")], False),
        ([("a.example.com/team/*", "a.example.com/{repository}")], False),
        ([("a.example.com/*", "b.example.com/a/*"), ("b.example.com/x/*", "a.example.com/b/*")], False),
        ([("a.example.com/*", "b.example.com/a/*"), ("b.example.com/a/*", "c.example.com/*")], True),
        ([("a.example.com/x", "b.example.com/a/x"), ("b.example.com/a/*", "c.example.com/*")], True),
        ([("a.example.com/team/app", "b.example.com/x"), ("b.example.com/*", "a.example.com/team/*")], True),
    ],
)
def test_wildcards_that_do_not_read_their_own_targets_are_valid(
    mirrors: list[tuple[str, str]], warned: bool, tmp_path: Path
) -> None:
    entries = "".join(f"- source: '{source}'\n  targets: ['{target}']\n" for source, target in mirrors)
    config = load_text(tmp_path, f"{HEAD}mirrors:\n{entries}")
    assert warned == any("reads from a target of mirrors[0]" in warning for warning in config.warnings)


@pytest.mark.parametrize(
    "mirrors",
    [
        [("a.example.com/team/*", "a.example.com/team/copy/*", "{exclude: ['copy/.*']}")],
        [("a.example.com/team/*", "a.example.com/team/*-copy", "{exclude: ['.*-copy']}")],
        [("a.example.com/*", "a.example.com/copy/*", "{include: ['team/.*', 'other']}")],
        [("oci:y", "oci:y:copy/{repository}", "{exclude: ['copy/.*']}")],
        [("a.example.com/*", "b.example.com/*", "{include: [x.*]}"), ("b.example.com/in/*", "a.example.com/*", "")],
        [("a.example.com/*", "b.example.com/*", "{exclude: [x]}"), ("b.example.com/x", "a.example.com/x", "")],
        [
            ("a.example.com/*", "b.example.com/*", "{include: [x.*]}"),
            ("a.example.com/*", "b.example.com/*", "{exclude: [x.*]}"),
        ],
    ],
)
def test_rules_for_repositories_may_rule_out_cycles_and_conflicts(
    mirrors: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    entries = "".join(
        f"- source: '{source}'\n  targets: ['{target}']\n{f'  repositories: {rules}' if rules else ''}\n"
        for source, target, rules in mirrors
    )
    config = load_text(tmp_path, f"{HEAD}mirrors:\n{entries}")
    assert [bool(rules) for _, _, rules in mirrors] == [bool(mirror.repositories) for mirror in config.mirrors]


def test_rules_for_repositories_in_the_defaults_concern_only_wildcards(tmp_path: Path) -> None:
    wildcard = "- source: a.example.com/*\n  targets: ['c.example.com/*']\n"
    config = load_text(tmp_path, f"{HEAD}defaults: {{repositories: {{exclude: ['v*']}}}}\n{MIRROR}{wildcard}")
    assert [RepositoryRules(), RepositoryRules(exclude=("v*",))] == [one.repositories for one in config.mirrors]
    (warning,) = config.warnings
    assert 'defaults.repositories.exclude[0]: "v*" looks like a shell pattern' in warning


def test_wildcards_that_swap_different_tags_are_valid(tmp_path: Path) -> None:
    text = (
        f"{HEAD}mirrors:\n- source: a.example.com/*\n  targets: ['b.example.com/*']\n  tags: [v1]\n"
        "- source: b.example.com/*\n  targets: ['a.example.com/*']\n  tags: [v2]\n"
    )
    assert () == load_text(tmp_path, text).warnings


def test_two_repositories_may_swap_different_tags(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        f"{HEAD}{MIRROR}  tags: [v1]\n- source: b.example.com/app:v2\n  targets: [a.example.com/app]\n",
    )
    assert () == config.warnings


def test_passwords_and_files_of_unused_registries_are_not_required(tmp_path: Path) -> None:
    text = f"{HEAD}registries:\n  z.example.com: {{username: joe, password: {{env: MIRROR_NOPE}}}}\n{MIRROR}"
    config = load_text(tmp_path, text)
    assert "joe" == config.settings_for("z.example.com").username


def test_a_file_can_be_checked_without_its_secrets(tmp_path: Path) -> None:
    settings = "username: joe, password: {env: MIRROR_NOPE}, tls: {ca: nope.pem, cert: nope.crt, key: nope.key}"
    path = write(tmp_path, f"{HEAD}registries:\n  b.example.com: {{{settings}}}\n{MIRROR}")
    missing = ("tls.ca", "tls.cert", "tls.key", "password")
    assert [True] * 4 == [
        f'registries."b.example.com".{key}: ' in warning and "; a run needs " in warning
        for key, warning in zip(missing, load(path, secrets=False).warnings, strict=True)
    ]
    assert 4 == len(load_errors(path).problems)


# ---- platforms ----


def test_platforms_are_a_set_and_a_mirror_replaces_those_of_the_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
version: 1
defaults: {platforms: [linux/arm64, linux/amd64, linux/arm64], index: sparse}
mirrors:
  - source: a.example.com/one
    targets: [b.example.com/one]
  - source: a.example.com/two
    targets: [b.example.com/two]
    platforms: ["windows(10.0.17763)/amd64"]
    index: rewrite
""",
    )
    one, two = (mirror.platforms for mirror in load(path).mirrors)
    assert PlatformFilter((Platform("linux", "amd64"), Platform("linux", "arm64")), sparse=True) == one
    assert PlatformFilter((Platform("windows", "amd64", "", "10.0.17763"),)) == two


def test_an_index_setting_without_platforms_causes_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}{MIRROR}  index: rewrite\n")
    (warning,) = load(path).warnings
    assert warning.endswith("mirrors[0].index: has no effect without `platforms`")
    assert None is load(path).mirrors[0].platforms


# ---- warnings ----


@pytest.mark.parametrize(
    ("source", "host", "mirror", "warned"),
    [
        ("a.example.com/team/*", "v1: per-tag", "", True),
        ("a.example.com/team/*", "v1: only", "v1: per-tag", True),
        ("a.example.com/team/*", "v1: per-tag", "v1: never", False),
        ("a.example.com/team/*", "", "", False),
        ("a.example.com/team/app", "v1: per-tag", "", False),
        ("docker.io/acme/*", "", "v1: per-tag", False),
    ],
)
def test_repositories_that_only_v1_has_are_not_found_by_a_wildcard(
    tmp_path: Path, source: str, host: str, mirror: str, warned: bool
) -> None:
    target = "b.example.com/*" if source.endswith("*") else "b.example.com/app"
    registries = f"registries:\n  a.example.com: {{{host}}}\n"
    text = f"{HEAD}{registries}mirrors:\n- source: {source}\n  targets: ['{target}']\n  {mirror}\n"
    warnings = load_text(tmp_path, text).warnings
    assert warned == bool(warnings)
    assert (
        not warned
        or "mirrors[0].source: a wildcard does not match repositories that are available only over v1" in warnings[0]
    )


def test_the_keys_of_a_mirror_replace_those_of_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    write(tmp_path / "keys", PUBLIC_KEY, "a.pub")
    (tmp_path / "b.pub").write_bytes(signing_key().pem)
    text = (
        f"{HEAD}defaults: {{verify-signatures: {{keys: [keys/a.pub]}}}}\n{MIRROR}"
        "- source: a.example.com/other\n  targets: [b.example.com/other]\n  verify-signatures: {keys: [b.pub]}\n"
    )
    config = load_text(tmp_path, text)
    policies = [mirror.signature_policy for mirror in config.mirrors]
    assert [["a.pub"], ["b.pub"]] == [[Path(key.name).name for key in policy.keys] for policy in policies if policy]
    assert () == config.warnings


def test_a_key_that_is_listed_twice_produces_a_warning(tmp_path: Path) -> None:
    write(tmp_path, PUBLIC_KEY, "a.pub")
    write(tmp_path, f"a comment\n{PUBLIC_KEY}", "b.pub")
    text = f"{HEAD}{MIRROR}  verify-signatures: {{keys: [a.pub, b.pub]}}\n"
    (warning,) = load_text(tmp_path, text).warnings
    assert f":5:37: mirrors[0].verify-signatures.keys[1]: the same key as in {tmp_path / 'a.pub'}" in warning


@pytest.mark.parametrize(
    "settings, says",
    [
        (
            f"username: joe, password: {CANARY}",
            ':3:44: registries."b.example.com".password: the password is in plain text',
        ),
        ("username: joe, password: {file: open}", "all users can read"),
        ("tls: {verify: false}", ".tls.verify: the certificate is not verified"),
        (
            "plain-http: true, username: joe, password: {env: PATH}",
            '"b.example.com".plain-http: credentials and images are sent unencrypted; remove `plain-http`',
        ),
    ],
)
def test_unsafe_settings_produce_a_warning(settings: str, says: str, tmp_path: Path) -> None:
    write(tmp_path, "secret\n", "open")
    config = load_text(tmp_path, f"{HEAD}registries:\n  b.example.com: {{{settings}}}\n{MIRROR}")
    (warning,) = config.warnings
    assert says in warning
    assert CANARY not in warning + repr(config)


@pytest.mark.parametrize("host", ["127.0.0.1:7102", "localhost", "localhost:7102", "[::1]:7102", "127.3.2.1"])
def test_plain_http_to_this_machine_produces_no_warning(host: str, tmp_path: Path) -> None:
    settings = "plain-http: true, username: joe, password: {env: PATH}"
    assert () == load_text(tmp_path, f"{HEAD}registries:\n  '{host}': {{{settings}}}\n{MIRROR}").warnings


def test_the_error_of_a_file_includes_its_warnings(tmp_path: Path) -> None:
    settings = f"registries:\n  b.example.com: {{username: joe, password: {CANARY}}}\n"
    path = write(tmp_path, f"{HEAD}state: ''\n{settings}{MIRROR}  tags: {{include: ['v*']}}\n")
    problem, *warnings = str(load_errors(path)).splitlines()
    assert problem.startswith(f"{path}:2:8: state: ")
    assert [f"warning: {path}:4:44: ", f"warning: {path}:8:20: "] == [
        line[: line.index(": ", 9) + 2] for line in warnings
    ]
    assert "looks like a shell pattern" in warnings[1]


def test_a_chain_of_mirrors_produces_a_warning(tmp_path: Path) -> None:
    config = load_text(tmp_path, f"{HEAD}{MIRROR}- source: b.example.com/app\n  targets: [c.example.com/app]\n")
    (warning,) = config.warnings
    assert "mirrors[1]: reads from a target of mirrors[0]" in warning


def test_a_tag_listed_twice_produces_a_warning_and_is_used_once(tmp_path: Path) -> None:
    config = load_text(tmp_path, f"{HEAD}{MIRROR}  tags: [v1, v2, v1]\n")
    assert ("v1", "v2") == config.mirrors[0].tags.literal
    assert '"v1" is listed twice' in config.warnings[0]


def test_a_file_that_others_can_write_produces_a_warning_for_root(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + MIRROR)
    path.chmod(0o666)
    assert (os.geteuid() == 0) == any("users other than root can write" in warning for warning in load(path).warnings)


def test_a_private_key_that_others_can_read_produces_a_warning(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client.example.com")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    issued.private_key_pem.write_to_path(tmp_path / "k.pem")
    text = f"{HEAD}registries:\n  b.example.com: {{tls: {{cert: c.pem, key: k.pem}}}}\n{MIRROR}"
    (tmp_path / "k.pem").chmod(0o644)
    assert "k.pem; run `chmod 600 " in load_text(tmp_path, text).warnings[0]
    (tmp_path / "k.pem").chmod(0o600)
    assert () == load_text(tmp_path, text).warnings


# ---- TLS files ----


def test_a_real_authority_and_client_certificate_are_accepted(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("client.example.com")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    issued.private_key_pem.write_to_path(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o600)
    text = f"{HEAD}registries:\n  b.example.com: {{tls: {{ca: ca.pem, cert: c.pem, key: k.pem}}}}\n{MIRROR}"
    tls = load_text(tmp_path, text).settings_for("b.example.com").tls
    assert (tmp_path / "ca.pem", tmp_path / "c.pem", tmp_path / "k.pem", True) == (
        tls.ca,
        tls.cert,
        tls.key,
        tls.verify,
    )


def test_a_key_of_another_certificate_is_an_error(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("a.example.com").cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    authority.issue_cert("b.example.com").private_key_pem.write_to_path(tmp_path / "k.pem")
    text = f"{HEAD}registries:\n  b.example.com: {{tls: {{cert: c.pem, key: k.pem}}}}\n{MIRROR}"
    error = load_errors(write(tmp_path, text))
    assert "do not match" in str(error)


# ---- the state directory ----


def test_each_file_has_its_own_default_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    one = state_directory(load_text(tmp_path, HEAD + MIRROR))
    assert tmp_path / ".local/state/mirror" == one.parent
    assert re.fullmatch(r"mirror-[0-9a-f]{12}", one.name)
    (tmp_path / "link.yaml").symlink_to("mirror.yaml")
    assert one.name.removeprefix("mirror") == state_directory(load(tmp_path / "link.yaml")).name.removeprefix("link")
    (tmp_path / "sub").mkdir()
    assert one != state_directory(load(write(tmp_path / "sub", HEAD + MIRROR)))


def test_the_error_without_a_home_directory_names_the_key_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)  # a user without an entry in the password database
    config = load_text(tmp_path, HEAD + MIRROR)
    with pytest.raises(LocalError, match="`state`") as caught:
        state_directory(config)
    assert 4 == caught.value.exit_code
    given = load_text(tmp_path, f"{HEAD}state: here\n{MIRROR}")
    assert tmp_path / "here" == state_directory(given)


# ---- the schema, the examples, the manual ----


def test_the_schema_is_valid_and_published_unchanged() -> None:
    published = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(published)
    assert (ROOT / "mirror/config.schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_describes_every_key() -> None:
    def undescribed(part: Any, where: str) -> Iterator[str]:
        for key, below in part.get("properties", {}).items():
            target = published["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else {}
            if not (below.get("description") or target.get("description")) and key != "timeouts":
                yield f"{where}.{key}"
            yield from undescribed(below, f"{where}.{key}")

    published = json.loads(schema_text())
    assert [] == [*undescribed(published, ""), *undescribed(published["$defs"]["registry"], "HOST")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"env: ([A-Z_]+)", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, "x")
    assert load(path).mirrors


def test_the_manual_has_every_key_and_marks_those_of_later_versions() -> None:
    missing = [key for key in schema.key_paths() if f"`{key.rpartition('.')[2].removesuffix('[]')}`" not in MANUAL]
    assert [] == missing
    later = MANUAL[MANUAL.index("## Not in this version") :]
    flagged = [key for key, part in schema.parts() if part.get("x-not-yet") is True]
    assert [] == [key for key in flagged if f"`{key.rpartition('.')[2]}`" not in later]


@pytest.mark.parametrize(
    "block", re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(encoding="utf-8"), re.DOTALL)
)
def test_the_examples_of_the_manual_are_valid(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"env: (\w+)", block):
        monkeypatch.setenv(name, "https://hooks.example.com/x")
    write(tmp_path, PUBLIC_KEY, "cosign.pub")
    assert load_text(tmp_path, block).mirrors


def test_we_accept_what_pyyaml_and_jsonschema_accept(tmp_path: Path) -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        document = yaml_reader.read(path)
        assert yaml.safe_load(path.read_bytes()) == to_plain(document.root)
        jsonschema.validate(to_plain(document.root), json.loads(schema_text()))


def test_attachments_are_copied_by_default_and_rules_replace_those_of_the_defaults(tmp_path: Path) -> None:
    source = "source: a.example.com/app, targets: [b.example.com/app"
    text = f"""version: 1
defaults: {{referrers: {{include: [sbom, application/vnd.in-toto+json]}}, recheck: 2 h}}
mirrors:
- {{{source}/1]}}
- {{{source}/2], referrers: false}}
- {{{source}/3], referrers: true, recheck: 0 s}}
- {{{source}/4], referrers: {{exclude: [signature], require: [sbom, "text/spdx; charset=utf-8"]}}}}
"""
    found = [mirror.attachments for mirror in load_text(tmp_path, text).mirrors]
    assert found == [
        AttachmentRules(include=("sbom", "application/vnd.in-toto+json"), recheck=7200.0),
        None,
        AttachmentRules(recheck=0.0),
        AttachmentRules(exclude=("signature",), require=("sbom", "text/spdx; charset=utf-8"), recheck=7200.0),
    ]
    (mirror,) = load_text(tmp_path, HEAD + MIRROR).mirrors
    assert AttachmentRules(recheck=24 * 3600.0) == mirror.attachments


def test_a_password_file_is_checked_but_not_read(tmp_path: Path) -> None:
    secret = write(tmp_path, CANARY, "secret")
    secret.chmod(stat.S_IRUSR)
    text = f"{HEAD}registries:\n  b.example.com: {{username: joe, password: {{file: secret}}}}\n{MIRROR}"
    config = load_text(tmp_path, text)
    password = config.settings_for("b.example.com").password
    assert password is not None
    write(tmp_path, "rotated\n", "secret")
    assert "rotated" == password.reveal()
