"""The grammar of sources and targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.locations import (
    BundleLocation,
    LayoutLocation,
    Location,
    RegistryLocation,
    StreamLocation,
    parse_source,
    parse_target,
)
from mirror.selection.tag_templates import TagTemplate

HEX = "a" * 64
DIGEST = Digest(f"sha256:{HEX}")


def registry(host: str, path: str, *, wildcard: bool = False) -> RegistryLocation:
    return RegistryLocation(Repository(host, path), wildcard=wildcard)


SOURCES: dict[str, Location] = {
    "alpine": registry("docker.io", "library/alpine"),
    "reg.example.com/team/app": registry("reg.example.com", "team/app"),
    "reg.example.com/app:v1": RegistryLocation(Repository("reg.example.com", "app"), "v1"),
    f"reg.example.com/app@{DIGEST}": RegistryLocation(Repository("reg.example.com", "app"), None, DIGEST),
    f"reg.example.com/app:v1@{DIGEST}": RegistryLocation(Repository("reg.example.com", "app"), "v1", DIGEST),
    "reg.example.com/team/*": registry("reg.example.com", "team", wildcard=True),
    "reg.example.com/*": registry("reg.example.com", "", wildcard=True),
    "docker.io/*": registry("docker.io", "", wildcard=True),
    "docker.io/library/*": registry("docker.io", "library", wildcard=True),
    "acme/*": registry("docker.io", "acme", wildcard=True),
    "redis:7": RegistryLocation(Repository("docker.io", "library/redis"), "7"),
    "myhost/app": registry("docker.io", "myhost/app"),
    "docker.io/library/images.tgz": registry("docker.io", "library/images.tgz"),
    "oci:/srv/export": LayoutLocation("/srv/export"),
    "oci:export": LayoutLocation("export"),
    "oci:/srv/export:team/app": LayoutLocation("/srv/export", "team/app"),
    "oci:/srv/export:app:v1": LayoutLocation("/srv/export", "app", "v1"),
    f"oci:/srv/export:app@{DIGEST}": LayoutLocation("/srv/export", "app", None, DIGEST),
    "oci:/srv/export:team/*": LayoutLocation("/srv/export", "team", wildcard=True),
    "oci:/srv/export:*": LayoutLocation("/srv/export", "", wildcard=True),
    "export.tar": BundleLocation("export.tar"),
    "/srv/2024-01.tar:team/app": BundleLocation("/srv/2024-01.tar", "team/app"),
    "/srv/a.tar:*": BundleLocation("/srv/a.tar", "", wildcard=True),
    "-": StreamLocation(),
}

TARGETS: dict[str, Location] = {
    "reg.example.com/team/app": registry("reg.example.com", "team/app"),
    "reg.example.com/{repository}": registry("reg.example.com", "{repository}", wildcard=True),
    "reg.example.com/copy/*": registry("reg.example.com", "copy/{repository}", wildcard=True),
    "reg.example.com/x-{repository}-y": registry("reg.example.com", "x-{repository}-y", wildcard=True),
    "docker.io/{repository}": registry("docker.io", "{repository}", wildcard=True),
    "docker.io/acme/*": registry("docker.io", "acme/{repository}", wildcard=True),
    "localhost/app": registry("localhost", "app"),
    "a.tgz/app": registry("a.tgz", "app"),
    "reg.example.com/images.tgz": registry("reg.example.com", "images.tgz"),
    "oci:/srv/export": LayoutLocation("/srv/export"),
    "oci:/srv/export:{repository}": LayoutLocation("/srv/export", "{repository}", wildcard=True),
    "oci:/srv/export:x/*": LayoutLocation("/srv/export", "x/{repository}", wildcard=True),
    "export.tar:{repository}": BundleLocation("export.tar", "{repository}", wildcard=True),
    "reg.example.com/app:{tag}-x": RegistryLocation(
        Repository("reg.example.com", "app"), tag_template=TagTemplate("", "-x")
    ),
    "reg.example.com:5000/app:v{tag}": RegistryLocation(
        Repository("reg.example.com:5000", "app"), tag_template=TagTemplate("v", "")
    ),
    "reg.example.com/app:{tag}": RegistryLocation(Repository("reg.example.com", "app"), tag_template=TagTemplate()),
    "reg.example.com/app:v1": RegistryLocation(
        Repository("reg.example.com", "app"), tag_template=TagTemplate("v1", None)
    ),
    "docker.io/{repository}:{tag}-x": RegistryLocation(
        Repository("docker.io", "{repository}"), wildcard=True, tag_template=TagTemplate("", "-x")
    ),
    "docker.io/library/*:x": RegistryLocation(
        Repository("docker.io", "library/{repository}"), wildcard=True, tag_template=TagTemplate("x", None)
    ),
    "oci:/srv/x:{repository}:a-{tag}": LayoutLocation(
        "/srv/x", "{repository}", wildcard=True, tag_template=TagTemplate("a-", "")
    ),
    "x.tar:app:{tag}-b": BundleLocation("x.tar", "app", tag_template=TagTemplate("", "-b")),
    "-": StreamLocation(),
}


@pytest.mark.parametrize("text", SOURCES)
def test_a_valid_source_is_parsed(text: str) -> None:
    assert SOURCES[text] == parse_source(text)


@pytest.mark.parametrize("text", TARGETS)
def test_a_valid_target_is_parsed(text: str) -> None:
    assert TARGETS[text] == parse_target(text)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "the repository is missing"),
        ("*", 'the registry is missing before the `*`; write "registry.example.com/*"'),
        ("reg.example.com/a*", "at the end"),
        ("reg.example.com/*/app", "at the end"),
        ("reg.example.com/app:v*", "under `tags`"),
        ("reg.example.com/{repository}", "targets"),
        ("oci:", "expected oci:DIR or oci:DIR:REPOSITORY"),
        ("oci::app", "expected oci:DIR or oci:DIR:REPOSITORY"),
        ("oci:/srv:", "the repository is missing after the colon"),
        ("oci:/srv:App", "lowercase"),
        ("x.tar:", "the repository is missing after the colon"),
        ("x.tar:a/../b", "not a valid reference"),
        ("-:*", "`-` takes no repository"),
        ("-:team/app", "`-` takes no repository"),
        (
            "docker://reg.example.com/app",
            'leave out the `docker://`; write "reg.example.com/app"',
        ),
        ("docker:reg.example.com/app", 'leave out the `docker:`; write "reg.example.com/app"'),
        ("oci-archive:x.tar", '`oci-archive:` is not supported; a bundle has the form FILE.tar; write "x.tar"'),
        ("dir:/srv", '`dir:` is not supported; a layout has the form oci:DIR; write "oci:/srv"'),
        ("docker-daemon:app", "`docker-daemon:` is not supported; write a registry as host/repository)"),
        ("https://reg.example.com/app", 'without a scheme such as https://; write "reg.example.com/app"'),
        ("reg.example.com/app:*", 'omit the tag to select all tags; write "reg.example.com/app"'),
    ],
)
def test_an_invalid_source_is_an_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source(text)
    assert "ref_invalid" == caught.value.code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text, says",
    [
        (f"reg.example.com/app@{DIGEST}", "a target must not have a digest"),
        (f"oci:/srv/x:app:{{tag}}@{DIGEST}", "a target must not have a digest"),
        ("reg.example.com/{tag}", "{tag} is allowed only in the tag"),
        ("oci:/srv/{tag}:app", "{tag} is allowed only in the tag"),
        ("reg.example.com/app:{tag}-{tag}", "only once"),
        ("reg.example.com/app:-{tag}", "does not begin with '.' or '-'"),
        ("reg.example.com/app:{repository}", "{repository} is allowed only in the repository"),
        ("reg.example.com/*/{repository}", "only once"),
        ("*.example.com/app", "(`*` is allowed only in the repository"),
        ("oci:/srv/*", "(`*` is allowed only in the repository"),
        ("{repository}.example.com/app", "({repository} is allowed only in the repository"),
        ("oci:/srv/{repository}", "only in the repository"),
        ("-:{repository}", "`-` takes no repository"),
        ("{repository}.tar", "only in the repository"),
    ],
)
def test_an_invalid_target_is_an_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    assert "ref_invalid" == caught.value.code
    assert says in str(caught.value)


DIRECTORY = "a directory needs the prefix `oci:`"
BUNDLE = "the name of a bundle must end in `.tar`, in lower case and without a slash"
ARCHIVE = "this looks like a file, but a bundle must be an uncompressed tar file"
NO_REPOSITORY = "the repository is missing after the host"
NO_HOST = "a target must name a registry"
# Text that looks like a host or a file: the reason, the suggestions for a target, and further ones for a source.
SLIPS: dict[str, tuple[str, list[str], list[str]]] = {
    "images.tgz": (ARCHIVE, ["images.tar"], ["docker.io/library/images.tgz"]),
    "out.tar.gz:app": (ARCHIVE, ["out.tar:app"], ["docker.io/library/out.tar.gz:app"]),
    "export/images.zip": (ARCHIVE, ["export/images.tar"], ["docker.io/export/images.zip"]),
    "images.TAR": (BUNDLE, ["images.tar"], []),
    "images.tar/": (BUNDLE, ["images.tar"], []),
    "images.Tar//": (BUNDLE, ["images.tar"], []),
    "images.TAR:team/app": (BUNDLE, ["images.tar:team/app"], []),
    "export/images.TAR": (BUNDLE, ["export/images.tar"], []),
    "/srv/images.tar/": (BUNDLE, ["/srv/images.tar"], []),
    "./dir": (DIRECTORY, ["oci:./dir"], []),
    "../dir": (DIRECTORY, ["oci:../dir"], []),
    "..": (DIRECTORY, ["oci:.."], []),
    "/srv/export": (DIRECTORY, ["oci:/srv/export"], []),
    "~/export": (DIRECTORY, ["oci:~/export"], []),
    "export/": (DIRECTORY, ["oci:export"], []),
    "/srv/*": (DIRECTORY, ["oci:/srv:*"], []),
    "127.0.0.1:7001": (NO_REPOSITORY, ["127.0.0.1:7001/repository"], []),
    "127.0.0.1:7001/": (NO_REPOSITORY, ["127.0.0.1:7001/repository"], []),
    "reg.example.com": (NO_REPOSITORY, ["reg.example.com/repository"], []),
    "localhost": (NO_REPOSITORY, ["localhost/repository"], []),
    "localhost:5000": (NO_REPOSITORY, ["localhost:5000/repository"], []),
    "myhost:5000": (NO_REPOSITORY, ["myhost:5000/repository"], ["docker.io/library/myhost:5000"]),
    "[::1]:5000": (NO_REPOSITORY, ["[::1]:5000/repository"], []),
    f"localhost:5000@{DIGEST}": (NO_REPOSITORY, [], []),
    "oci:$HOME/x": ("shell variables such as $HOME", ["oci:~/x"], []),
    "${HOME}/x.tar": ("shell variables such as $HOME", ["~/x.tar"], []),
    "reg.example.com/$TEAM/app": ("shell variables such as $HOME", [], []),
}


@pytest.mark.parametrize("text", SLIPS)
def test_text_like_a_host_or_file_is_not_an_image_of_docker_hub(text: str) -> None:
    says, for_both, for_sources = SLIPS[text]
    for parse, meant in ((parse_target, for_both), (parse_source, for_both + for_sources)):
        with pytest.raises(ConfigError) as caught:
            parse(text)
        written = f"; write {', or '.join(map(quoted, meant))})" if meant and "@" not in text else ""
        assert says in str(caught.value)
        assert written in str(caught.value)
        for suggestion in meant:
            assert parse(suggestion)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("alpine", ["registry.example.com/alpine", "oci:alpine"]),
        ("hub", ["registry.example.com/hub", "oci:hub"]),
        ("alpine:3.20", ["registry.example.com/alpine", "oci:alpine"]),
        ("acme/app", ["registry.example.com/acme/app", "oci:acme/app"]),
        ("acme/*", ["registry.example.com/acme/*"]),
        ("{repository}/app", ["registry.example.com/{repository}/app"]),
    ],
)
def test_a_target_without_a_registry_is_an_error_with_suggestions(text: str, meant: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    assert f"({NO_HOST}; write {', or '.join(map(quoted, meant))})" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("reg.example.com/{repo}", '{tag} are supported; write "reg.example.com/{repository}"'),
        ("reg.example.com/app:{Tag}-x", '{tag} are supported; write "reg.example.com/app:{tag}-x"'),
        (f"reg.example.com/app:v1@{DIGEST}", '; write "reg.example.com/app:v1"'),
    ],
)
def test_an_invalid_template_is_an_error_with_a_suggestion(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    assert says in str(caught.value)


def quoted(text: str) -> str:
    return f'"{text}"'


@pytest.mark.parametrize("parse", [parse_source, parse_target])
@pytest.mark.parametrize(
    "text", ["joe:hunter2@reg.example.com/a*b*", "https://joe:hunter2@x/y", "oci:/x:joe:hunter2@y"]
)
def test_messages_do_not_show_possible_passwords(text: str, parse: object) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40) | st.text(alphabet="ab.:/@*{}-oci[]tr", max_size=30))
def test_arbitrary_text_is_a_location_or_a_configuration_error(text: str) -> None:
    for parse in (parse_source, parse_target):
        try:
            location = parse(text)
        except ConfigError as error:
            assert 2 == error.exit_code
        else:
            assert location.kind
