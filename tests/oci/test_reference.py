"""References: which texts are valid, and that all spellings of a repository are one value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ConfigError, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import DOCKER_HUB, Reference, Repository, is_path, is_tag, parse_host

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"

VALID = {
    "ubuntu": (DOCKER_HUB, "library/ubuntu", None, None),
    "docker.io/ubuntu": (DOCKER_HUB, "library/ubuntu", None, None),
    "index.docker.io/ubuntu": (DOCKER_HUB, "library/ubuntu", None, None),
    "registry-1.docker.io/library/ubuntu": (DOCKER_HUB, "library/ubuntu", None, None),
    "Docker.IO:443/ubuntu:22.04": (DOCKER_HUB, "library/ubuntu", "22.04", None),
    "docker.io:5000/ubuntu": ("docker.io:5000", "ubuntu", None, None),
    "acme/app": (DOCKER_HUB, "acme/app", None, None),
    "myhost/x": (DOCKER_HUB, "myhost/x", None, None),  # no dot, no colon: not a host
    "localhost/x": ("localhost", "x", None, None),
    "localhost:5000/x:v1": ("localhost:5000", "x", "v1", None),
    "localhost:05000/x": ("localhost:5000", "x", None, None),
    "myhost:5000": (DOCKER_HUB, "library/myhost", "5000", None),
    "127.0.0.1:5000/x": ("127.0.0.1:5000", "x", None, None),
    "[::1]:5000/x": ("[::1]:5000", "x", None, None),
    "[0:0:0:0:0:0:0:1]/x": ("[::1]", "x", None, None),
    "HOST.Example.com./x": ("host.example.com", "x", None, None),
    "xn--80ak6aa92e.com/x": ("xn--80ak6aa92e.com", "x", None, None),
    "h.example.com/a__b": ("h.example.com", "a__b", None, None),
    "h.example.com/a--b": ("h.example.com", "a--b", None, None),
    "h.example.com/a.b_c": ("h.example.com", "a.b_c", None, None),
    "h.example.com/v2": ("h.example.com", "v2", None, None),
    "h.example.com/blobs/uploads": ("h.example.com", "blobs/uploads", None, None),
    "h.example.com/x/manifests/y": ("h.example.com", "x/manifests/y", None, None),
    "h.example.com/a/tags/list": ("h.example.com", "a/tags/list", None, None),
    f"h.example.com/x:{'t' * 128}": ("h.example.com", "x", "t" * 128, None),
    f"h.example.com/x:v1@{SHA256}": ("h.example.com", "x", "v1", SHA256),
    f"x@{SHA512}": (DOCKER_HUB, "library/x", None, SHA512),
    "h.example.com/" + "x" * 241: ("h.example.com", "x" * 241, None, None),  # 255 with the host
}

INVALID = {
    "": "the repository is missing",
    " ": "lower-case letters and digits",
    ":tag": "the repository is missing",
    f"@{SHA256}": "the repository is missing",
    "/x": "lower-case letters and digits",
    "x/": "lower-case letters and digits",
    "a//b": "lower-case letters and digits",
    "Ubuntu": "lowercase: 'library/ubuntu'",
    "docker.io/Library/x": "lowercase: 'library/x'",
    "a/../b": "lower-case letters and digits",
    "a/./b": "lower-case letters and digits",
    "./a": "the host name is not valid",
    "..": "lower-case letters and digits",
    "%2e%2e/a": "lower-case letters and digits",
    "a%2fb": "lower-case letters and digits",
    "a\\b": "lower-case letters and digits",
    "a_.b": "lower-case letters and digits",
    "a___b": "lower-case letters and digits",
    "a-": "lower-case letters and digits",
    "-a": "lower-case letters and digits",
    "a..b": "lower-case letters and digits",
    ".a": "lower-case letters and digits",
    "h.example.com/" + "x" * 242: "longer than 255 characters",
    f"x:{'t' * 129}": "at most 128 characters",
    "x:.x": "does not begin with '.' or '-'",
    "x:-x": "does not begin with '.' or '-'",
    "x:a b": "letters, digits",
    "x:a:b": "letters, digits",
    "h.example.com/x:a/b": "letters, digits",
    "x:é": "letters, digits",
    "x:": "the tag is missing",
    "x:a+b": "use 'a_b'",
    "x:a\n": "letters, digits",
    "x:a\r\n": "letters, digits",
    "x:a\0": "letters, digits",
    "x:\x1b[2J": "letters, digits",
    "x:a\u202eb": "letters, digits",
    "x:\t": "letters, digits",
    "x\n": "lower-case letters and digits",
    f"x@sha256:{HEX[:-1]}": "expected sha256: and 64 hex digits",
    f"x@{SHA256}0": "expected sha256: and 64 hex digits",
    f"x@sha256:{HEX.upper()}": "expected sha256: and 64 hex digits",
    "x@sha256:": "expected sha256: and 64 hex digits",
    "x@:abc": "expected sha256: and 64 hex digits",
    f"x@sha256:{'g' * 64}": "expected sha256: and 64 hex digits",
    f"x@sha256-{HEX}": "credentials",
    "x@": "credentials",
    "x@md5:d41d8cd98f00b204e9800998ecf8427e": "digest algorithm",
    "x@sha1:da39a3ee": "digest algorithm",
    "x@sha384:aa": "digest algorithm",
    "x@sha256+b64u:aa": "digest algorithm",
    "x@blake3:aa": "digest algorithm",
    "x@multihash+base58:Qmaa": "digest algorithm",
    "x@sha256:../../../../etc/passwd": "credentials",
    "x@sha256:..%2f..": "expected sha256: and 64 hex digits",
    f"x@sha256:{'.' * 64}": "expected sha256: and 64 hex digits",
    f"x@{SHA256}@{SHA256}": "credentials",
    f"x@{SHA256}:v1": "expected sha256: and 64 hex digits",
    "host:0/x": "from 1 to 65535",
    "host:65536/x": "from 1 to 65535",
    "host:abc/x": "from 1 to 65535",
    f"host:{'9' * 900}/x": "longer than 255 characters",
    "host:999999/x": "from 1 to 65535",
    "host:٥٠٠٠/x": "punycode",
    "host:/x": "the port is missing",
    "::1/x": "an IPv6 address needs brackets",
    "[fe80::1%eth0]/x": "expected an IPv6 address in brackets",
    "[::1/x": "expected an IPv6 address in brackets",
    "[::1]x/y": "expected an IPv6 address in brackets",
    "[::1]:/y": "the port is missing",
    "[127.0.0.1]/y": "expected an IPv6 address in brackets",
    "-h.example.com/x": "the host name is not valid",
    "h..example.com/x": "the host name is not valid",
    "h_1.example.com/x": "the host name is not valid",
    "аpple.com/x": "punycode",  # Cyrillic а
    "\u212aube.example.com/x": "punycode",  # the Kelvin sign, which is a k in lower case
    "user:hunter2@host.example.com/x": "credentials",
    "user:hunter2@host:5000/x": "credentials",
    "user:hunter2@host:5000": "hint",
    "https://user:hunter2@host/x": "without a scheme",
    "https://host/x": "without a scheme",
    "docker://host/x": "without a scheme",
    "x" * 65536: "longer than 1024 characters",
    "user:hunter2@" + "x" * 65536: "longer than 1024 characters",
}
INVALID["user:hunter2@host:5000"] = "digest algorithm"


@pytest.mark.parametrize("text", VALID)
def test_a_valid_reference_has_one_canonical_form(text: str) -> None:
    host, path, tag, digest = VALID[text]
    reference = Reference.parse(text)
    assert Reference(Repository(host, path), tag, Digest(digest) if digest else None) == reference
    assert (digest or tag or "") == reference.name
    assert reference == Reference.parse(str(reference))


@pytest.mark.parametrize("text", INVALID, ids=lambda text: ascii(text)[:40])
def test_the_error_for_an_invalid_reference_has_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reference.parse(text)
    error = caught.value
    assert INVALID[text] in str(error)
    assert ("ref_invalid", 2, False) == (error.code, error.exit_code, error.retryable)
    assert len(str(error)) < 500
    assert not set("\n\r\0\x1b\u202e\t") & set(str(error))
    assert "hunter2" not in str(error)


def test_a_repository_with_a_tag_or_digest_is_an_error() -> None:
    assert Repository("docker.io", "library/x") == Repository.parse("x")
    for text in ("x:v1", f"x@{SHA256}"):
        with pytest.raises(ConfigError, match="without a tag or digest"):
            Repository.parse(text)


def test_a_host_can_be_parsed_alone() -> None:
    assert ["docker.io", "docker.io", "[2001:db8::1]:443", "a.b:80"] == [
        parse_host(text) for text in ("Registry-1.Docker.io", "docker.io.", "[2001:DB8:0::1]:443", "A.b.:080")
    ]
    for text in ("", ".", ":80", "a/b", "joe@a.b", "a.b:", "x" * 256, "a b"):
        with pytest.raises(ConfigError):
            parse_host(text)


label = st.from_regex(r"[a-z0-9]{1,6}(-[a-z0-9]{1,4})?", fullmatch=True)
repositories = st.builds(
    Repository,
    st.builds(
        lambda labels, port: ".".join(labels) + (f":{port}" if port else ""),
        st.lists(label, min_size=2, max_size=4),
        st.none() | st.integers(1, 65535),
    ),
    st.lists(
        st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True), min_size=1, max_size=4
    ).map("/".join),
)
references = st.builds(
    Reference,
    repositories,
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.none() | st.binary(max_size=9).map(Digest.of),
)


@given(references)
def test_the_text_of_a_reference_parses_to_the_same_reference(reference: Reference) -> None:
    assert reference == Reference.parse(str(reference))
    assert is_path(reference.repository.path)
    assert reference.tag is None or is_tag(reference.tag)


def test_a_host_needs_a_dot_or_port() -> None:
    with pytest.raises(ConfigError, match="a dot or a port"):
        Reference.parse("app./web")


@given(st.text(max_size=60) | st.text(alphabet="aZ0.:/@-_[]%\\ ", max_size=40))
def test_arbitrary_text_is_a_safe_reference_or_an_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ConfigError:
        return
    assert reference.repository.path.isascii()
    assert ".." not in reference.repository.path
    assert not set(str(reference)) & set("%\\ \n?#")
    assert reference == Reference.parse(str(reference))


# ---- digests ----


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_a_supported_digest_is_accepted(text: str) -> None:
    digest = Digest.parse(text)
    assert text == digest == f"{digest.algorithm}:{digest.hex}"
    assert digest.hex[:12] == digest.short()
    hasher = digest.hasher()
    hasher.update(b"x")
    assert Digest.of(b"x", digest.algorithm).hex == hasher.hexdigest()


BAD_DIGESTS: tuple[object, ...] = (
    "",
    None,
    12,
    [SHA256],
    HEX,
    SHA256[:-1],
    SHA256 + "0",
    SHA256.upper(),
    f"sha256:{HEX.upper()}",
    f"sha256-{HEX}",
    "sha256:",
    f":{HEX}",
    f"sha256:{'g' * 64}",
    f"{SHA256}\n",
    f" {SHA256}",
    f"sha512:{HEX}",
    "sha256:../../../../etc/passwd",
    "sha256:/etc/passwd",
    f"sha256:{'.' * 64}",
    f"sha256:{'٣' * 64}",
    f"SHA256:{HEX}",
    "md5:d41d8cd98f00b204e9800998ecf8427e",
    "sha384:aa",
    "sha256+b64u:aa",
)


@pytest.mark.parametrize("value", BAD_DIGESTS, ids=lambda value: ascii(value)[:40])
def test_an_invalid_digest_is_an_error(value: object) -> None:
    with pytest.raises(Refused) as caught:
        Digest.parse(value)
    assert ("ref_invalid", 3) == (caught.value.code, caught.value.exit_code)


@given(st.text(max_size=100))
def test_digests_contain_only_hex_digits(text: str) -> None:
    with pytest.raises(Refused):
        Digest.parse(f"sha256:{text}" if len(text) != 64 else text)
