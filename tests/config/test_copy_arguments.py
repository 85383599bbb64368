"""The configuration that `mirror copy` makes from its arguments, and the messages about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.config import Config, ConfigErrors
from mirror.config.copy_arguments import CopyArguments, Value, load_copy
from mirror.oci.reference import Repository
from mirror.selection.tag_rules import TagRules

SOURCE, TARGET = "a.example.com/app", "b.example.com/copy"
CONFIG = """version: 1
state: st
registries:
  B.example.com: {parallel: 3}
metrics: {textfile: mirror.prom}
defaults: {schema1: convert, tags: [v1]}
mirrors: [{source: c.example.com/x, targets: [c.example.com/x]}]
"""


def arguments(
    folder: Path,
    *options: tuple[tuple[str, ...], Value, str],
    source: str = SOURCE,
    targets: tuple[str, ...] = (TARGET,),
    plain_http: tuple[str, ...] = (),
    config: str | None = None,
) -> CopyArguments:
    """Return arguments of `copy`. config: the text of a configuration file in a folder of its own."""
    keys: dict[tuple[str, ...], tuple[Value, str]] = {path: (value, name) for path, value, name in options}
    path = None
    if config is not None:
        path = folder / "etc" / "prod.yaml"
        path.parent.mkdir()
        path.write_text(config)
    return CopyArguments(
        {("source",): (source, "SOURCE"), ("targets",): (list(targets), "TARGET"), **keys}, path, plain_http, folder
    )


def problems(copy: CopyArguments) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_copy(copy)
    return str(caught.value).splitlines()


def only_mirror(config: Config) -> tuple[Repository, tuple[Repository, ...], TagRules]:
    (mirror,) = config.mirrors
    return mirror.source, mirror.targets, mirror.tags


def test_the_arguments_are_the_only_mirror_of_the_configuration(tmp_path: Path) -> None:
    copy = arguments(
        tmp_path,
        (("tags", "include"), ["v.*"], "--include"),
        (("tags", "newest"), 2, "--newest"),
        targets=(TARGET, "oci:out", "x.tar:team/app"),
    )
    source, targets, tags = only_mirror(load_copy(copy))
    assert Repository("a.example.com", "app") == source
    on_disk = (Repository(f"oci:{tmp_path}/out", "app"), Repository(f"{tmp_path}/x.tar", "team/app"))
    assert (Repository("b.example.com", "copy"), *on_disk) == targets
    assert (["v.*"], 2) == (list(tags.include), tags.newest)


def test_a_file_gives_everything_but_its_mirrors(tmp_path: Path) -> None:
    config = load_copy(arguments(tmp_path, config=CONFIG, plain_http=("b.example.com",)))
    assert only_mirror(config)[2] == TagRules(("v1",))
    assert "convert" == config.mirrors[0].schema1
    settings = config.settings_for("b.example.com")
    assert (3, True) == (settings.parallel, settings.plain_http)
    assert tmp_path / "etc" / "st" == config.state


def test_the_options_of_a_copy_replace_the_defaults_of_the_file(tmp_path: Path) -> None:
    config = load_copy(arguments(tmp_path, (("tags",), ["v2"], "--tag"), config=CONFIG))
    assert TagRules(("v2",)) == only_mirror(config)[2]


@pytest.mark.parametrize(
    ("options", "locations", "expected"),
    [
        ([(("tags", "newest"), "x", "--newest")], {}, ["--newest: expected a number from 1"]),
        ([(("v1",), "maybe", "--v1")], {}, ["--v1: expected one of auto, never, only, per-tag"]),
        ([(("platforms",), ["linux"], "--platform")], {}, ["--platform: not a platform: 'linux'"]),
        ([(("tags", "include"), ["("], "--include")], {}, ["--include: "]),
        ([(("verify-signatures", "keys"), ["none.pub"], "--verify-signatures")], {}, ["--verify-signatures: "]),
        (
            [(("tags", "semver"), ["1"], "--semver")],
            {"source": f"{SOURCE}:v1"},
            ["--semver: `source` already contains a tag"],
        ),
        ([], {"source": "A/b"}, ["SOURCE: "]),
        ([], {"targets": ("app",)}, ["TARGET: not a valid location: 'app'"]),
        ([], {"targets": (SOURCE,)}, ["TARGET: would mirror onto itself"]),
        ([], {"targets": (TARGET, TARGET)}, ["TARGET: b.example.com/copy is listed twice"]),
        ([], {"source": "x.tar", "targets": ("./x.tar:app",)}, ["TARGET: "]),
        ([], {"plain_http": ("http://b",)}, ["--plain-http: expected host[:port]"]),
        ([(("v1",), "x", "--v1")], {"targets": ("app",)}, ["--v1: expected one of", "TARGET: not a valid"]),
    ],
)
def test_a_message_names_the_argument(
    options: list[tuple[tuple[str, ...], Value, str]],
    locations: dict[str, tuple[str, ...]],
    expected: list[str],
    tmp_path: Path,
) -> None:
    found = problems(arguments(tmp_path, *options, **locations))  # type: ignore[arg-type]  # keys of two types
    assert len(expected) == len(found), found
    assert [] == [(words, line) for words, line in zip(expected, found, strict=True) if not line.startswith(words)]


def test_a_problem_in_the_file_has_its_position(tmp_path: Path) -> None:
    text = "version: 1\nregistries: [x]\ndefaults: {v1: maybe}\n"
    copy = arguments(tmp_path, config=text, plain_http=("b.example.com",))
    places = [line.split(": ")[0] for line in problems(copy)]
    assert [f"{copy.config}:2:13", f"{copy.config}:3:16"] == places


def test_each_combination_of_arguments_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {
        arguments(tmp_path).folder,
        arguments(tmp_path, targets=("b.example.com/other",)).folder,
        arguments(tmp_path, (("tags",), ["v1"], "--tag")).folder,
        arguments(tmp_path, targets=("oci:out",)).folder,
        arguments(tmp_path / "elsewhere", targets=("oci:out",)).folder,
    }
    assert 5 == len(folders)
    assert arguments(tmp_path).folder == arguments(tmp_path / "elsewhere", plain_http=("x",)).folder
