"""Reading `WWW-Authenticate`: what a server wants to see before it answers.

Grammar: RFC 9110 sections 11.2 to 11.6.1 (formerly RFC 7235). Servers break it, so what does not fit is passed
over up to the next comma, and the rest is read. Nothing here raises for what a server sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mirror.registry.http.headers import WHITE_SPACE
from mirror.util.structs import Struct, field

MAX_CHARACTERS = 64 * 1024  # of all the header fields of an answer together
MAX_CHALLENGES = 64

_SKIP = re.compile(r"[ \t,]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GAP = re.compile(r"[ \t]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]++=*+(?=[ \t]*(?:,|$))")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_UP_TO_COMMA = re.compile(r"[^,]*")


class Challenge(Struct, frozen=True):
    """scheme and the names of params in lower case; of a parameter given twice the first counts."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)
    token68: str = ""


def parse_challenges(fields: Sequence[str]) -> tuple[Challenge, ...]:
    """The challenges of an answer's `WWW-Authenticate` fields, in their order.

    Nothing of a field beyond MAX_CHARACTERS in all is read, and no challenge beyond MAX_CHALLENGES."""
    found: list[Challenge] = []
    left = MAX_CHARACTERS
    for text in fields:
        if len(text) > left:
            break
        left -= len(text)
        found.extend(_parse(text, MAX_CHALLENGES - len(found)))
    return tuple(found)


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The one that we answer: Bearer with a realm before Basic; None if there is neither."""
    basic = None
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.params.get("realm"):
            return challenge
        if challenge.scheme == "basic" and basic is None:
            basic = challenge
    return basic


def _parse(text: str, most: int) -> list[Challenge]:
    found: list[Challenge] = []
    params: dict[str, str] | None = None  # of the last challenge; None: it takes none
    at = _end(_SKIP, text, 0)
    while at < len(text):
        word = _TOKEN.match(text, at)
        if word is None:
            at = _end(_SKIP, text, _end_of_item(text, at))
            continue
        at = word.end()
        equals = _EQUALS.match(text, at)
        if equals:
            value, at = _value(text, equals.end())
            if value is not None and params is not None:
                params.setdefault(word.group().lower(), value)
            at = _end(_SKIP, text, _end_of_item(text, at))
            continue
        if len(found) == most:
            break
        token68, at = _token68(text, at)
        params = {}
        found.append(Challenge(word.group().lower(), params, token68))
        at = _end(_SKIP, text, at)
    return found


def _token68(text: str, at: int) -> tuple[str, int]:
    """Credentials in one word after a scheme (`Negotiate a87421000492==`); not `realm=x`, not a parameter's name."""
    gap = _end(_GAP, text, at)
    word = _TOKEN68.match(text, gap) if gap > at else None
    return (word.group(), word.end()) if word else ("", at)


def _value(text: str, at: int) -> tuple[str | None, int]:
    """A parameter's value; None where a quote is never closed."""
    if text.startswith('"', at):
        quoted = _QUOTED.match(text, at)
        return (_ESCAPE.sub(r"\1", quoted.group(1)), quoted.end()) if quoted else (None, len(text))
    # Unquoted values ought to be tokens; some servers leave the quotes off a realm's URL.
    plain = _UP_TO_COMMA.match(text, at)
    return (plain.group().strip(WHITE_SPACE), plain.end()) if plain else (None, len(text))


def _end_of_item(text: str, at: int) -> int:
    """The next comma outside of quotes, from `at` on; the end, where a quote is never closed."""
    while at < len(text) and text[at] != ",":
        if text[at] == '"':
            quoted = _QUOTED.match(text, at)
            at = quoted.end() if quoted else len(text)
        else:
            at += 1
    return at


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
