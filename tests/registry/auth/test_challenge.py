"""Parsing WWW-Authenticate."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.registry.auth.challenge import MAX_CHALLENGES, MAX_CHARACTERS, Challenge, choose_challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
HUB_PARAMS = {
    "realm": "https://auth.docker.io/token",
    "service": "registry.docker.io",
    "scope": "repository:a/b:pull,push",
}

CASES: list[tuple[list[str], list[tuple[str, dict[str, str], str]]]] = [
    ([], []),
    ([""], []),
    ([HUB], [("bearer", HUB_PARAMS, "")]),
    (["Basic"], [("basic", {}, "")]),
    (['BASIC ReAlm="Registry Realm"'], [("basic", {"realm": "Registry Realm"}, "")]),
    (['Basic realm="a", Bearer realm="b"'], [("basic", {"realm": "a"}, ""), ("bearer", {"realm": "b"}, "")]),
    (['Basic realm="a"', 'Bearer realm="b"'], [("basic", {"realm": "a"}, ""), ("bearer", {"realm": "b"}, "")]),
    (["Negotiate, Basic realm=x"], [("negotiate", {}, ""), ("basic", {"realm": "x"}, "")]),
    (["Negotiate YII+/.~-_==, Basic"], [("negotiate", {}, "YII+/.~-_=="), ("basic", {}, "")]),
    (
        ['Digest qop="auth, auth-int", nonce=x, Basic'],
        [("digest", {"qop": "auth, auth-int", "nonce": "x"}, ""), ("basic", {}, "")],
    ),
    (['Basic realm="a \\"quoted\\" \\\\ word"'], [("basic", {"realm": 'a "quoted" \\ word'}, "")]),
    (['Bearer realm = "a" , service\t=\t"b"'], [("bearer", {"realm": "a", "service": "b"}, "")]),
    (
        ["Bearer realm=https://a.example/t?x=1,service=s"],
        [("bearer", {"realm": "https://a.example/t?x=1", "service": "s"}, "")],
    ),
    (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"}, "")]),
    (['Bearer realm=""'], [("bearer", {"realm": ""}, "")]),
    (['Bearer realm="never closed, service="s"'], [("bearer", {"realm": "never closed, service="}, "")]),
    (['Bearer realm="a", service="never closed'], [("bearer", {"realm": "a"}, "")]),
    ([',, ,Basic realm="a",, ,'], [("basic", {"realm": "a"}, "")]),
    (['realm="of nobody", Basic'], [("basic", {}, "")]),
    (['Bearer realm="a\r\nb\x00c\xe9"'], [("bearer", {"realm": "a\r\nb\x00c\xe9"}, "")]),
    (['"quoted, Basic", Bearer realm="a"'], [("bearer", {"realm": "a"}, "")]),
    (["(;) Basic, Bearer realm=a"], [("bearer", {"realm": "a"}, "")]),
]


@pytest.mark.parametrize(("fields", "expected"), CASES, ids=lambda case: repr(case)[:60])
def test_challenges_are_parsed_by_the_grammar(
    fields: list[str], expected: list[tuple[str, dict[str, str], str]]
) -> None:
    assert expected == [(one.scheme, dict(one.params), one.token68) for one in parse_challenges(fields)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (['Basic realm="a", Bearer realm="b"'], "bearer"),
        (['Bearer realm="b"', "Basic"], "bearer"),
        (["Bearer, Basic"], "basic"),
        (['Bearer realm="", Basic'], "basic"),
        (["Negotiate, Digest nonce=1"], None),
        (["Bearer"], None),
        ([], None),
    ],
)
def test_bearer_with_a_realm_is_preferred_over_basic(fields: list[str], expected: str | None) -> None:
    chosen = choose_challenge(parse_challenges(fields))
    assert expected == (chosen.scheme if chosen else None)


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 32_000,
        "a " * 32_000,
        "x " + "a" * 60_000 + "!",
        '"' * 65_000,
        "a=" * 32_000,
        "," * 65_000,
        "(" * 65_000,
    ],
    ids=lambda text: text[:8],
)
def test_a_malicious_header_is_parsed_in_linear_time(text: str) -> None:
    started = time.thread_time()
    assert MAX_CHALLENGES >= len(parse_challenges([text]))
    assert time.thread_time() - started < 1


def test_fields_beyond_the_limit_are_ignored() -> None:
    filler = "Basic realm=" + "x" * (MAX_CHARACTERS - 12)
    assert 1 == len(parse_challenges([filler, "Basic"]))
    assert () == parse_challenges([filler + "x"])


def test_challenges_beyond_the_limit_are_ignored() -> None:
    assert MAX_CHALLENGES == len(parse_challenges(["Basic, " * 500, "Basic"]))


@given(st.lists(st.text(alphabet=st.characters(codec="latin-1"), max_size=200), max_size=3))
def test_no_header_raises_an_error(fields: list[str]) -> None:
    for challenge in parse_challenges(fields):
        assert isinstance(challenge, Challenge)


_token = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
_text = st.text(alphabet=st.characters(codec="latin-1", exclude_characters="\r\n\x00"), max_size=30)


@given(
    st.lists(
        st.tuples(_token, st.dictionaries(_token.map(str.lower), _text, min_size=1, max_size=4)), min_size=1, max_size=4
    )
)
def test_challenges_written_by_the_grammar_are_parsed_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    field = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(text)}" for name, text in params.items())
        for scheme, params in challenges
    )
    expected = [(scheme.lower(), params) for scheme, params in challenges]
    assert expected == [(one.scheme, dict(one.params)) for one in parse_challenges([field])]
