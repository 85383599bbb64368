"""A parser for the `WWW-Authenticate` header.

Grammar: RFC 9110, sections 11.2 to 11.6.1 (formerly RFC 7235). Some servers violate the grammar, so the parser skips
invalid parts up to the next comma and raises no errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mirror.errors import printable
from mirror.registry.http.headers import WHITE_SPACE
from mirror.util.structs import Struct, field

MAX_CHARACTERS = 64 * 1024  # the total for all fields of a response
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
    """An authentication challenge from the `WWW-Authenticate` header of a response.

    The scheme and the parameter names are in lower case. If a parameter is repeated, its first value is used."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)
    token68: str = ""


def parse_challenges(fields: Sequence[str]) -> tuple[Challenge, ...]:
    """Return the challenges in the values of the `WWW-Authenticate` fields, in order.

    Fields after the first MAX_CHARACTERS in total, and challenges after the first MAX_CHALLENGES, are ignored."""
    found: list[Challenge] = []
    left = MAX_CHARACTERS
    for text in fields:
        if len(text) > left:
            break
        left -= len(text)
        found.extend(_parse_field(text, MAX_CHALLENGES - len(found)))
    return tuple(found)


def choose_challenge(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the challenge to answer: the first Bearer challenge with a realm, or else the first Basic challenge.

    Return None if there is neither."""
    basic = None
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.params.get("realm"):
            return challenge
        if challenge.scheme == "basic" and basic is None:
            basic = challenge
    return basic


def _parse_field(text: str, limit: int) -> list[Challenge]:
    """Return at most `limit` challenges from the value of one `WWW-Authenticate` field."""
    found: list[Challenge] = []
    params: dict[str, str] | None = None  # of the last challenge; None before the first challenge
    position = _match_end(_SKIP, text, 0)
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            position = _match_end(_SKIP, text, _item_end(text, position))
            continue
        position = token.end()
        equals = _EQUALS.match(text, position)
        if equals:
            value, position = _read_value(text, equals.end())
            if value is not None and params is not None:
                params.setdefault(token.group().lower(), value)
            position = _match_end(_SKIP, text, _item_end(text, position))
            continue
        if len(found) == limit:
            break
        token68, position = _read_token68(text, position)
        params = {}
        found.append(Challenge(token.group().lower(), params, token68))
        position = _match_end(_SKIP, text, position)
    return found


def explain_unsupported(challenges: Sequence[Challenge]) -> str:
    """Return the reason why no challenge can be used, as the end of a sentence about the registry."""
    schemes = sorted({challenge.scheme for challenge in challenges})
    if "bearer" in schemes:
        return "requires a bearer token, but its challenge has no realm"
    if schemes:
        return f"requires an unsupported authentication scheme: {printable(', '.join(schemes), 80)}"
    return "responds with 401 but without a valid challenge"


def _read_token68(text: str, position: int) -> tuple[str, int]:
    """Read the token68 value after a scheme, as in `Negotiate a87421000492==`. Return the value and its end position.

    Return an empty value if a parameter such as `realm=x` follows instead."""
    gap = _match_end(_GAP, text, position)
    token = _TOKEN68.match(text, gap) if gap > position else None
    return (token.group(), token.end()) if token else ("", position)


def _read_value(text: str, position: int) -> tuple[str | None, int]:
    """Read the value of a challenge parameter. Return the value and its end position.

    The value is None if its closing quote is missing."""
    if text.startswith('"', position):
        quoted = _QUOTED.match(text, position)
        return (_ESCAPE.sub(r"\1", quoted.group(1)), quoted.end()) if quoted else (None, len(text))
    # Unquoted values must be tokens, but some servers send the URL of a realm without quotes.
    plain = _UP_TO_COMMA.match(text, position)
    return (plain.group().strip(WHITE_SPACE), plain.end()) if plain else (None, len(text))


def _item_end(text: str, position: int) -> int:
    """Return the position of the next comma outside quotes, or the end of `text` if there is no such comma."""
    while position < len(text) and text[position] != ",":
        if text[position] == '"':
            quoted = _QUOTED.match(text, position)
            position = quoted.end() if quoted else len(text)
        else:
            position += 1
    return position


def _match_end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return the end of the match of `pattern` at `position`, or `position` itself if it does not match."""
    match = pattern.match(text, position)
    return match.end() if match else position
