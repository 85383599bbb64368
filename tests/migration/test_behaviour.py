"""What `mirror convert` prints, writes and refuses; keys without an equivalent; files that cannot be converted."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
import yaml

from mirror.cli import main
from mirror.commands.parsers import TOOLS
from mirror.config import load
from mirror.errors import ConfigError
from mirror.migration.conversion import ConvertedMirror, merge_mirrors
from mirror.migration.converter import Converted, convert_file
from tests.migration.fixture import files

# Keys that have no equivalent: each must have a note. docs/migration.md lists them, too.
REPORTED = {
    "regsync": """hostname pass token credHost apiOpts credHelper credExpire regcert pathPrefix mirrors priority
    repoAuth blobChunk blobMax api parallel cacheCount cacheTime blobLimit skipDockerConfig userAgent backup interval
    schedule min retry annotations referrerSlow fastCheck forceRecursive mediaTypes hooks platform semverRange user
    registry""",
    "skopeo": "tls-verify cert-dir password identitytoken",
    "image-syncer": "password identityToken insecure",
    "dregsy": """relay dockerhost api-version watch binary maxItems cacheDuration interval verbose auth
    skip-tls-verify tags to""",
}


def convert(tool: str, text: str, folder: Path, **variables: str) -> Converted:
    file = folder / ("images.yaml" if tool == "image-syncer" else f"{tool}.yml")
    file.write_text(text, encoding="utf-8")
    return convert_file(tool, file, "target.example.com/hub" if tool == "skopeo" else None, variables)


# All keys in the tables of docs/migration.md.
KEYS = {
    "regsync": """version registry hostname user pass token apiOpts pathPrefix mirrors priority credHelper credExpire
    credHost tls scheme regcert clientCert clientKey reqPerSec reqConcurrent repoAuth blobChunk blobMax api parallel
    cacheCount cacheTime blobLimit skipDockerConfig userAgent source target type tags allow deny semverRange tagSets
    repos platform platforms referrers digestTags referrerFilters artifactType annotations referrerSource referrerTarget
    referrerSlow mediaTypes hooks fastCheck forceRecursive includeExternal backup interval schedule ratelimit min
    retry""",
    "skopeo": """images images-by-tag-regex images-by-semver credentials username password identitytoken tls-verify
    cert-dir""",
    "image-syncer": "auth images username password identityToken insecure",
    "dregsy": """relay docker dockerhost api-version skopeo binary certs-dir lister maxItems cacheDuration watch tasks
    name interval verbose source target registry auth auth-refresh skip-tls-verify type search mappings from to tags
    platform""",
}


def keys_in(node: object) -> set[str]:
    """Return the keys of all mappings in a document."""
    if isinstance(node, dict):
        return {str(key) for key in node}.union(*map(keys_in, node.values()))
    return set().union(*map(keys_in, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("tool", TOOLS)
def test_the_ten_files_have_every_key_of_the_tool(tool: str) -> None:
    found = set().union(*(keys_in(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files(tool)))
    assert set() == set(KEYS[tool].split()) - found


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_is_in_the_documentation(tool: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {tool}\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"[A-Za-z][A-Za-z-]*", " ".join(re.findall(r"`([^`]+)`", section))))
    assert {"artifactType", "annotations"} >= set(KEYS[tool].split()) - named


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_without_an_equivalent_is_reported_with_its_line(tool: str) -> None:
    variables = {"MIGRATION_TARGET": "target.example.com", "MIGRATION_USER": "joe"}
    reported: set[str] = set()
    for file in files(tool):
        lines = file.read_text(encoding="utf-8").splitlines()
        destination = "target.example.com/hub" if tool == "skopeo" else None
        for note in convert_file(tool, file, destination, variables).notes:
            assert "is not a known key" not in note
            found = re.match(rf"{re.escape(str(file))}:(\d+): \S*?([\w-]+): ", note)
            if found is not None:
                reported.add(found[2])
                assert found[2] in lines[int(found[1]) - 1], note
    assert set(REPORTED[tool].split()) <= reported


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("regsync", "version: 1\nsync:\n- {source: a/b, target: h.example.com/b, type: repository, tagz: {}}\n"),
        ("skopeo", "h.example.com:\n  images: {a: []}\n  tagz: 1\n"),
        (
            "dregsy",
            "tagz: 1\ntasks:\n- name: a\n  source: {registry: h.example.com}\n"
            "  target: {registry: i.example.com}\n  mappings: [{from: a, platform: all}]\n",
        ),
    ],
)
def test_an_unknown_key_is_reported(tool: str, text: str, tmp_path: Path) -> None:
    converted = convert(tool, text, tmp_path)
    (note,) = [note for note in converted.notes if "tagz" in note]
    assert f"not converted: this is not a known key of {tool}" in note


def test_the_new_file_is_written_with_the_notes_as_comments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer, config = tmp_path / "regsync.yml", tmp_path / "mirror.yaml"
    peer.write_text(
        "creds: [{registry: h.example.com, user: joe, pass: hunter2}]\n"
        "sync:\n"
        "- {source: alpine, target: h.example.com/alpine, type: repository, backup: old}\n"
    )
    assert 0 == main(["convert", "--from", "regsync", str(peer), "-o", str(config)])
    out, err = capsys.readouterr()
    assert f"{config}: 1 mirror written, 2 notes\n" == out
    login = "the password is not copied: set the environment variable H_EXAMPLE_COM_PASSWORD to this password"
    backup = "not converted: a tag that is overwritten is not saved under another name"
    assert [
        f"mirror: {peer}:1: creds[0].pass: {login}",
        f"mirror: {peer}:3: sync[0].backup: {backup}",
    ] == err.splitlines()
    text = config.read_text(encoding="utf-8")
    assert "hunter2" not in text
    assert [
        "version: 1",
        "defaults: {referrers: false}",
        "registries:",
        "  h.example.com: {username: joe, password: {env: H_EXAMPLE_COM_PASSWORD}}",
        "mirrors:",
        f"  # regsync.yml:3: sync[0].backup: {backup}",
        "  - source: docker.io/library/alpine",
        "    targets: [h.example.com/alpine]",
    ] == text[text.index("version: 1") :].splitlines()


def test_without_an_output_file_the_configuration_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer, config = tmp_path / "sync.yaml", tmp_path / "mirror.yaml"
    peer.write_text("docker.io:\n  images: {alpine: ['3.20']}\n")
    assert 0 == main(["convert", "--from", "skopeo", str(peer), "--destination", "h.example.com/hub"])
    config.write_text(capsys.readouterr().out)
    (mirror,) = load(config).mirrors
    assert ("docker.io/library/alpine", ["h.example.com/hub/alpine"]) == (
        str(mirror.source),
        [*map(str, mirror.targets)],
    )


@pytest.mark.parametrize(
    ("destination", "target"),
    [
        ("h.example.com", "h.example.com/alpine"),
        ("h.example.com/a/b/", "h.example.com/a/b/alpine"),
        ("h.example.com/{repository}", "h.example.com/docker.io/library/alpine"),
        ("h.example.com/a:{tag}-x", "h.example.com/a/alpine"),
    ],
)
def test_the_destination_of_skopeo_is_the_beginning_of_each_target(
    destination: str, target: str, tmp_path: Path
) -> None:
    peer, config = tmp_path / "sync.yaml", tmp_path / "mirror.yaml"
    peer.write_text("docker.io:\n  images: {alpine: ['3.20']}\n")
    config.write_text(convert_file("skopeo", peer, destination, {}).text)
    assert target == str(load(config).mirrors[0].targets[0])


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("regsync", "sync:\n- {source: a/b, target: h.example.com/b, type: repository}\n"),
        ("skopeo", "docker.io:\n  images: {alpine: []}\n"),
        ("image-syncer", "docker.io/library/alpine: h.example.com/alpine\n"),
        ("dregsy", "relay: skopeo\ntasks: []\n"),
    ],
)
def test_a_file_of_another_tool_is_refused_and_the_command_that_converts_it_is_named(
    tool: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "peer.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"is a configuration of {tool}.*`mirror convert --from {tool} "):
        load(file)
    other = next(one for one in TOOLS if one != tool)
    with pytest.raises(ConfigError, match=f"looks like a file of {tool}"):
        convert_file(other, file, None, {})


@pytest.mark.parametrize(
    ("tool", "text", "what"),
    [
        ("regsync", "sync: [{source: a, target: h.example.com/a, type: other}]\n", "must be registry, repository or"),
        ("regsync", "sync: [{source: 'a:1', target: h.example.com/a, type: repository}]\n", "has no tag"),
        ("regsync", "sync: [{source: '{{env \"NO\"}}/a', target: h.example.com/a, type: image}]\n", "NO is not set"),
        (
            "regsync",
            "sync: [{source: a, target: 'h.example.com/{{index (split .Sync.Source \"/\") 9}}', type: image}]\n",
            "template is not supp",
        ),
        ("regsync", "sync: [{source: '{{now}}', target: h.example.com/a, type: image}]\n", "template is not supp"),
        (
            "regsync",
            "sync: [{source: a, target: h.example.com/a, type: repository, tags: {allow: ['(']}}]\n",
            "left out",
        ),
        ("regsync", "sync: [{target: h.example.com/a, type: repository}]\n", "no `source`"),
        ("skopeo", "docker.io:\n  images: {a: ['no tag']}\n", "not a tag"),
        ("skopeo", "docker.io:\n  images-by-tag-regex: {a: '['}\n", "left out"),
        ("skopeo", "docker.io:\n  images-by-semver: {a: latest}\n", "does not accept the range"),
        ("skopeo", "docker.io:\n  images: {UPPER: ['1']}\n", "lowercase"),
        ("image-syncer", "docker.io/a/b: h.example.com/a:1,2\n", "as many tags as the source"),
        ("image-syncer", "docker.io/a/b:1: ${NO}/a\n", "NO is not set"),
        ("dregsy", "tasks: [{name: a, source: {registry: a.example.com}}]\n", "needs `source` and `target`"),
        (
            "dregsy",
            "tasks: [{name: a, source: {registry: a.example.com}, target: {registry: b.example.com}, "
            "mappings: [{from: a, tags: ['js: v > 1']}]}]\n",
            "JavaScript",
        ),
        (
            "dregsy",
            "tasks: [{name: a, source: {registry: a.example.com}, target: {registry: b.example.com}, "
            "mappings: [{from: a, tags: ['regex: a.*', 'keep: b.*']}]}]\n",
            "match two patterns",
        ),
        (
            "dregsy",
            "tasks: [{name: a, source: {registry: a.example.com}, target: {registry: b.example.com}, "
            "mappings: [{from: 'regex:x/.*', to: 'regex:.*,y'}]}]\n",
            "literal beginning",
        ),
    ],
)
def test_an_entry_that_cannot_be_converted_is_reported_with_the_reason(
    tool: str, text: str, what: str, tmp_path: Path
) -> None:
    converted = convert(tool, text, tmp_path)
    assert (0, True) == (converted.mirrors, converted.has_losses)
    assert [note for note in converted.notes if what in note]


@pytest.mark.parametrize(
    ("tool", "text", "what"),
    [
        ("regsync", "version: 2\nsync: [{source: a, target: h.example.com/a, type: image}]\n", "only version 1"),
        ("regsync", "sync: 3\nversion: 1\n", "list of mappings"),
        ("regsync", "sync: []\n", "nothing can be converted"),
        ("image-syncer", "images: {}\nauth: {}\n", "nothing can be converted"),
        ("regsync", "sync: [{source: a, target: h.example.com/a, type: no}]\n", "nothing can be converted"),
    ],
)
def test_if_nothing_can_be_converted_no_file_is_written(
    tool: str, text: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer, config = tmp_path / "peer.yml", tmp_path / "mirror.yaml"
    peer.write_text(text)
    assert 2 == main(["convert", "--from", tool, str(peer), "-o", str(config)])
    assert what in capsys.readouterr().err
    assert not config.exists()


def test_an_entry_that_cannot_be_converted_is_left_out_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer, config = tmp_path / "regsync.yml", tmp_path / "mirror.yaml"
    peer.write_text(
        "sync:\n"
        "- {source: a/b, target: h.example.com/b, type: repository, tags: {allow: ['(?=x)']}}\n"
        "- {source: a/c, target: h.example.com/c, type: repository}\n"
    )
    assert 1 == main(["convert", "--from", "regsync", str(peer), "-o", str(config)])
    assert f"{peer}:2: sync[0].tags.allow: left out: " in capsys.readouterr().err
    assert ["docker.io/a/c"] == [str(mirror.source) for mirror in load(config).mirrors]


def test_two_entries_that_would_write_the_same_tags_are_not_both_converted(tmp_path: Path) -> None:
    converted = convert("skopeo", "docker.io:\n  images: {alpine: []}\nquay.io:\n  images: {x/alpine: []}\n", tmp_path)
    assert converted.has_losses
    assert 1 == converted.mirrors
    (note,) = [note for note in converted.notes if "left out" in note]
    assert "skopeo.yml:4: quay.io/x/alpine: left out: " in note
    assert "the entry on line 2 may both write the same tags of target.example.com/hub/alpine" in note


def test_the_latest_versions_that_dregsy_keeps_become_the_newest_versions(tmp_path: Path) -> None:
    text = (
        "relay: skopeo\ntasks: [{name: a, source: {registry: a.example.com}, target: {registry: b.example.com}, "
        "mappings: [{from: a, platform: all, tags: ['keep: latest 3']}]}]\n"
    )
    converted = convert("dregsy", text, tmp_path)
    assert converted.has_losses
    assert {"newest": 3} == yaml.safe_load(converted.text)["mirrors"][0]["tags"]


def test_a_configuration_of_ours_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is already a configuration of mirror"):
        convert("dregsy", "version: 1\nmirrors: [{source: a, targets: [h.example.com/a]}]\n", tmp_path)


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "skopeo"])
def test_the_option_for_the_destination_is_refused_for_files_with_targets(tool: str) -> None:
    with pytest.raises(ConfigError, match="only for skopeo"):
        convert_file(tool, files(tool)[0], "h.example.com/hub", {})


@pytest.mark.parametrize("destination", [None, "", "hub", "user:hunter2@h.example.com/hub", "h.example.com/{repo}"])
def test_a_missing_or_invalid_destination_is_refused(destination: str | None) -> None:
    with pytest.raises(ConfigError, match="DESTINATION argument of `skopeo sync`") as caught:
        convert_file("skopeo", files("skopeo")[0], destination, {})
    assert "hunter2" not in str(caught.value)


def test_the_converted_file_is_not_replaced(tmp_path: Path) -> None:
    peer = tmp_path / "regsync.yml"
    peer.write_text("sync:\n- {source: a/c, target: h.example.com/c, type: repository}\n")
    link = tmp_path / "link.yml"
    link.symlink_to(peer)
    assert 2 == main(["convert", "--from", "regsync", str(peer), "-o", str(link)])
    assert 4 == main(["convert", "--from", "regsync", str(peer), "-o", str(tmp_path / "missing" / "x.yaml")])
    assert "sync:" in peer.read_text()


@pytest.mark.parametrize("text", ["sync:\n- {source: a, source: b}\n", "creds:\n- {registry: a, pass: *hunter2}\n"])
def test_a_file_with_errors_is_refused_without_showing_passwords(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        convert("regsync", text, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_the_logins_of_image_syncer_are_read_from_the_file_beside_the_images(tmp_path: Path) -> None:
    logins = {
        "h.example.com": {"username": "$WHO", "password": "${TOKEN}"},
        "h.example.com/team": {"username": "team", "password": "hunter2"},
        "no-host": {"username": "a", "password": "b"},
    }
    (tmp_path / "auth.json").write_text(json.dumps(logins))
    converted = convert("image-syncer", "docker.io/a/b: h.example.com/team/b\n", tmp_path, WHO="joe")
    config = tmp_path / "mirror.yaml"
    config.write_text(converted.text)
    settings = load(config, secrets=False).registries["h.example.com"]
    assert "joe" == settings.username
    assert "password: {env: TOKEN}" in converted.text
    assert "H_EXAMPLE_COM_TEAM_PASSWORD" in converted.text
    assert any(note.startswith("auth.json:1: no-host: not converted") for note in converted.notes)
    assert "hunter2" not in converted.text + "".join(converted.notes)


def test_a_login_that_is_repeated_has_one_note_and_another_one_is_reported(tmp_path: Path) -> None:
    logins = [
        base64.b64encode(json.dumps({"username": user, "password": password}).encode()).decode()
        for user, password in (("joe", "hunter2"), ("joe", "hunter2"), ("joe", "hunter3"), ("ann", "hunter2"))
    ]
    tasks = "".join(
        f"- {{name: t, source: {{registry: a.example.com, auth: {login}}}, target: {{registry: b.example.com}}, "
        f"mappings: [{{from: r{number}, platform: all}}]}}\n"
        for number, login in enumerate(logins)
    )
    notes = convert("dregsy", f"relay: skopeo\ntasks:\n{tasks}", tmp_path).notes
    assert 1 == len([note for note in notes if "the password is not copied" in note])
    assert ["tasks[2]", "tasks[3]"] == [note.split(": ")[1][:8] for note in notes if "another login" in note]
    assert "hunter" not in "".join(notes)


def test_certificates_of_skopeo_are_used_if_the_directory_has_one_of_each_kind(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    for name in ("ca.crt", "client.cert"):
        (folder / name).touch()
    text = f"h.example.com:\n  cert-dir: {folder}\n  images: {{a: ['1']}}\n"
    registries = yaml.safe_load(convert("skopeo", text, tmp_path).text)["registries"]
    assert {"ca": f"{folder}/ca.crt", "cert": f"{folder}/client.cert"} == registries["h.example.com"]["tls"]
    (folder / "other.crt").touch()
    converted = convert("skopeo", text, tmp_path)
    assert converted.has_losses
    assert "registries" not in yaml.safe_load(converted.text)


def test_text_from_the_file_cannot_add_lines_or_control_a_terminal(tmp_path: Path) -> None:
    text = 'sync:\n- {source: a/b, target: h.example.com/b, type: repository, tags: {allow: ["a\\nb: c\\u001b", ok]}}\n'
    converted = convert("regsync", text, tmp_path)
    config = tmp_path / "mirror.yaml"
    config.write_text(converted.text, encoding="utf-8")
    assert ("a\nb: c\x1b", "ok") == load(config).mirrors[0].tags.include
    assert "\x1b" not in converted.text


def test_an_entry_that_differs_from_a_wildcard_in_its_settings_is_kept_with_its_own_tags(tmp_path: Path) -> None:
    text = (
        "sync:\n"
        "- {source: h.example.com, target: i.example.com, type: registry, tags: {allow: ['1']}}\n"
        "- {source: h.example.com/a, target: i.example.com/a, type: repository, platform: linux/arm64}\n"
    )
    converted = convert("regsync", text, tmp_path)
    every, one = yaml.safe_load(converted.text)["mirrors"]
    assert ({"exclude": ["a"]}, None) == (every["repositories"], one.get("tags"))
    assert ["h.example.com/*: left out: the entry on line 3 writes to the same repository"] == [
        note.partition(", and the two")[0].partition(":2: ")[2] for note in converted.notes if "left out" in note
    ]


def test_many_entries_are_merged_in_linear_time() -> None:
    mirrors = [
        ConvertedMirror(number, f"h.example.com/r{number % 20_000}", ("i.example.com/r",)) for number in range(40_000)
    ]
    assert 20_000 == len(merge_mirrors(mirrors, []))


@pytest.mark.parametrize(
    ("entry", "source", "target", "tags"),
    [
        (
            "source: 'ocidir://in/App', target: h.example.com/a, type: repository",
            "oci:in/App:app",
            "h.example.com/a",
            None,
        ),
        (
            "source: 'ocidir://app:1', target: h.example.com/a, type: image",
            "oci:app:app",
            "h.example.com/a:latest",
            ["1"],
        ),
        ("source: a, target: 'ocidir:///srv/out', type: image", "docker.io/library/a", "oci:/srv/out:out", ["latest"]),
    ],
)
def test_a_layout_of_regsync_becomes_a_layout_with_one_repository(
    entry: str, source: str, target: str, tags: list[str] | None, tmp_path: Path
) -> None:
    converted = convert("regsync", f"sync: [{{{entry}}}]\n", tmp_path)
    (mirror,) = yaml.safe_load(converted.text)["mirrors"]
    assert (source, [target], tags) == (mirror["source"], mirror["targets"], mirror.get("tags"))
    assert any("while regsync stores tags without a repository" in note for note in converted.notes)
