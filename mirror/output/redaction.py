"""Taking secrets out of text: those we know, by their value, and those that have the shape of one.

The last line of defence in front of every log, report and message; nothing should reach it that holds a secret.
Rules: threats-and-faults §5.4.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

from mirror.errors import printable

HIDDEN = "***"

SHORTEST = 4  # characters of a secret that is looked for by its value: shorter ones are part of too many words
_KEY = 12  # characters by which a secret is found, also where the rest of it was cut off
_CUT = "…"  # what `printable` puts at the end of a text that it cuts

QUERY_KEYS = frozenset({"n", "last", "digest", "mount", "from", "service", "scope", "artifactType"})

_NAMES = r"token|access_token|refresh_token|id_token|registrytoken|identitytoken|password|passwd|client_secret|secret"
_HEADER = re.compile(
    r"""((?:proxy-)?authorization|(?:set-)?cookie|x-docker-token|x-registry-auth)  # the name
        ((?:\\*["']\s*,|\\*["']?\s*[:=])\s*(?:b(?=["']))?)                          # `: `, or as in the repr of a dict
        (?: (\\*["'])(?:(?!\3).)* | [^\r\n]* )                                     # quoted, or all the rest of the line
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SCHEME = re.compile(r"\b((?i:bearer|basic))(\s+)(?=\S*[A-Z0-9=])[A-Za-z0-9+/=._~-]{8,}")
_JSON = re.compile(rf"""(\\*["'])({_NAMES}|auth)\1(\s*:\s*)(\\*["'])(?:(?!\4)(?:\\.|.))*""", re.IGNORECASE)
_FORM = re.compile(rf"\b({_NAMES})=(?!\*\*\*)[^\s&\"',;<>]+", re.IGNORECASE)
_URL = re.compile(r"""([a-z][a-z0-9+.-]*://)([^\s"'<>/?#]*@)?([^\s"'<>?#]*)([?#][^\s"'<>]*)?""", re.IGNORECASE)
_QUERY = re.compile(r"""\?(?=[\w%.~\[\]-]+=)[^\s"'<>]+""")

# A line without any of these, and without a known secret, needs no closer look.
_SUSPICIOUS = ("://", "?", "auth", "cookie", "token", "passw", "secret", "bearer", "basic ")


class Redactor:
    """Call it with a text to get it without secrets. Thread-safe; reading takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: Mapping[str, tuple[str, ...]] = {}  # by their first characters

    def add(self, secret: str, user: str | None = None) -> None:
        """From now on, hide `secret`: as it is, percent-encoded, escaped as in JSON and by `printable`, and in base64,
        alone or after `user:`. One that is shorter than SHORTEST is hidden in base64 after `user:` only."""
        forms = _forms(secret, user)
        with self._lock:
            table = dict(self._forms)
            for form in forms:
                key = form[:_KEY]
                if form not in table.get(key, ()):
                    table[key] = tuple(sorted((*table.get(key, ()), form), key=len, reverse=True))
            # The longer ones first: another form may be the beginning of one.
            self._forms = dict(sorted(table.items(), key=lambda item: -len(item[0])))

    def __call__(self, text: str) -> str:
        """`text` without secrets. A text with nothing suspicious in it is given back as it is."""
        return self._shapes(self._values(text)) if self.suspects(text) else text

    def suspects(self, text: str) -> bool:
        """Whether `text` may hold a secret: cheap, and wrong only by saying so too often."""
        for key in self._forms:
            if key in text:
                return True
        folded = text.lower()
        return any(word in folded for word in _SUSPICIOUS)

    def _values(self, text: str) -> str:
        for key, forms in self._forms.items():
            start = text.find(key)
            while start >= 0:
                end = _end(text, start, forms)
                if end > start:
                    text = text[:start] + HIDDEN + text[end:]
                    end = start + len(HIDDEN)
                start = text.find(key, max(end, start + 1))
        return text

    @staticmethod
    def _shapes(text: str) -> str:
        text = _HEADER.sub(lambda found: f"{found[1]}{found[2]}{found[3] or ''}{HIDDEN}", text)
        text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
        text = _JSON.sub(lambda found: f"{found[1]}{found[2]}{found[1]}{found[3]}{found[4]}{HIDDEN}", text)
        text = _URL.sub(_url, text)
        text = _QUERY.sub(lambda found: _query(found[0], bare=False), text)
        return _FORM.sub(rf"\1={HIDDEN}", text)


def _forms(secret: str, user: str | None) -> set[str]:
    forms = set()
    if user:
        forms |= _base64(f"{user}:{secret}")
    if len(secret) >= SHORTEST:
        forms |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), printable(secret, len(secret))}
        forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
        forms |= _base64(secret) | _marked_up(secret)
    # What was escaped by `printable` may then be escaped as JSON.
    return {escaped for form in forms for escaped in (form, json.dumps(form)[1:-1])}


def _base64(text: str) -> set[str]:
    raw = text.encode("utf-8", "surrogatepass")
    padded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    return padded | {form.rstrip("=") for form in padded}


def _marked_up(text: str) -> set[str]:
    """As HTML and XML have it, by the habits of Go, Python and others, and JSON of Go, which is meant for HTML too."""
    forms = set()
    for quotes, apostrophe in (("&#34;", "&#39;"), ("&quot;", "&#x27;"), ("&quot;", "&apos;"), ("&quot;", "&#39;")):
        named = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        forms.add(named.replace('"', quotes).replace("'", apostrophe))
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return forms | {plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")}


def _end(text: str, start: int, forms: tuple[str, ...]) -> int:
    """Where the secret ends that may begin at `start`; `start` if there is none."""
    for form in forms:
        if text.startswith(form, start):
            return start + len(form)
    cut = text.find(_CUT, start)
    rest = text[start : cut if cut >= 0 else len(text)]
    return start + len(rest) if any(form.startswith(rest) for form in forms) else start


def _url(found: re.Match[str]) -> str:
    userinfo = f"{HIDDEN}@" if found[2] else ""
    return f"{found[1]}{userinfo}{found[3]}{_query(found[4], bare=True) if found[4] else ''}"


def _query(text: str, *, bare: bool) -> str:
    """A query, with its `?` (or a fragment, with its `#`), where only known keys keep their values.

    bare: whether a part without `=` is hidden too."""
    parts = []
    for part in re.split("([&;#?])", text):
        key, equals, value = part.partition("=")
        if equals and key not in QUERY_KEYS and value:
            parts.append(f"{key}={HIDDEN}")
        elif part and not equals and bare and part not in "&;#?":
            parts.append(HIDDEN)
        else:
            parts.append(part)
    return "".join(parts)
