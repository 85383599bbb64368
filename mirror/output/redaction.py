"""Removes secrets from text: known secrets by their values, and other secrets by patterns.

All logs, reports and messages pass through this module. It is a second line of defense: callers should not pass
secrets. The rules are in docs/trust.md, "Secrets in output".
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

SHORTEST = 4  # characters; shorter secrets are not searched for by value, since they occur in ordinary words
_KEY = 12  # the number of leading characters that identify a secret, even if its remainder was cut off
_CUT = "…"  # the character with which `printable` ends a text that it has cut

QUERY_KEYS = frozenset({"n", "last", "digest", "mount", "from", "service", "scope", "artifactType"})

_NAMES = r"token|access_token|refresh_token|id_token|registrytoken|identitytoken|password|passwd|client_secret|secret"
_HEADER = re.compile(
    r"""((?:proxy-)?authorization|(?:set-)?cookie|x-docker-token|x-registry-auth)  # the header's name
        ((?:\\*["']\s*,|\\*["']?\s*[:=])\s*(?:b(?=["']))?)                          # `: `, or as in the repr of a dict
        (?: (\\*["'])(?:(?!\3).)* | [^\r\n]* )                                     # quoted, or the rest of the line
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SCHEME = re.compile(r"\b((?i:bearer|basic))(\s+)(?=\S*[A-Z0-9=])[A-Za-z0-9+/=._~-]{8,}")
_JSON = re.compile(rf"""(\\*["'])({_NAMES}|auth)\1(\s*:\s*)(\\*["'])(?:(?!\4)(?:\\.|.))*""", re.IGNORECASE)
_FORM = re.compile(rf"\b({_NAMES})=(?!\*\*\*)[^\s&\"',;<>]+", re.IGNORECASE)
_URL = re.compile(r"""([a-z][a-z0-9+.-]*://)([^\s"'<>/?#]*@)?([^\s"'<>?#]*)([?#][^\s"'<>]*)?""", re.IGNORECASE)
_QUERY = re.compile(r"""\?(?=[\w%.~\[\]-]+=)[^\s"'<>]+""")

# A text that contains none of these strings and no known secret needs no redaction.
_SUSPICIOUS = ("://", "?", "auth", "cookie", "token", "passw", "secret", "bearer", "basic ")


class Redactor:
    """A callable that removes secrets from a text. It is thread-safe, and a call takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: Mapping[str, tuple[str, ...]] = {}  # by their first _KEY characters

    def add(self, secret: str, user: str | None = None) -> None:
        """Register a secret, so that it is removed from texts in all usual encodings.

        These are plain text, percent-encoding, escaping for JSON, for HTML and by `printable`, and base64, either alone
        or after `user:`. A secret that is shorter than SHORTEST is hidden only in base64 after `user:`."""
        forms = _encodings(secret, user)
        with self._lock:
            table = dict(self._forms)
            for form in forms:
                key = form[:_KEY]
                if form not in table.get(key, ()):
                    table[key] = tuple(sorted((*table.get(key, ()), form), key=len, reverse=True))
            # Longer keys come first, because a shorter one may be a prefix of a longer one.
            self._forms = dict(sorted(table.items(), key=lambda item: -len(item[0])))

    def __call__(self, text: str) -> str:
        """Return `text` without secrets. If it cannot contain any, it is returned unchanged."""
        return self._hide_patterns(self._hide_known_secrets(text)) if self.may_contain_secret(text) else text

    def may_contain_secret(self, text: str) -> bool:
        """Return False only if `text` certainly contains no secret. This is a fast check."""
        for key in self._forms:
            if key in text:
                return True
        folded = text.lower()
        return any(word in folded for word in _SUSPICIOUS)

    def _hide_known_secrets(self, text: str) -> str:
        """Replace the secrets that were passed to `add`, in all their encodings."""
        for key, forms in self._forms.items():
            start = text.find(key)
            while start >= 0:
                end = _secret_end(text, start, forms)
                if end > start:
                    text = text[:start] + HIDDEN + text[end:]
                    end = start + len(HIDDEN)
                start = text.find(key, max(end, start + 1))
        return text

    @staticmethod
    def _hide_patterns(text: str) -> str:
        """Replace strings that are probably secrets: header values, tokens, passwords, and parts of URLs."""
        text = _HEADER.sub(lambda found: f"{found[1]}{found[2]}{found[3] or ''}{HIDDEN}", text)
        text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
        text = _JSON.sub(lambda found: f"{found[1]}{found[2]}{found[1]}{found[3]}{found[4]}{HIDDEN}", text)
        return _FORM.sub(rf"\1={HIDDEN}", redact_urls(text))


def _encodings(secret: str, user: str | None) -> set[str]:
    """Return the encodings in which a secret may appear in a text. If `user` is given, also encode `user:secret`."""
    forms = set()
    if user:
        forms |= _base64_encodings(f"{user}:{secret}")
    if len(secret) >= SHORTEST:
        forms |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), printable(secret, len(secret))}
        forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
        forms |= _base64_encodings(secret) | _html_encodings(secret)
    # A text that was escaped by `printable` may be escaped again as JSON.
    return {escaped for form in forms for escaped in (form, json.dumps(form)[1:-1])}


def _base64_encodings(text: str) -> set[str]:
    """Return the base64 encodings of `text`: standard and URL-safe, each with and without padding."""
    raw = text.encode("utf-8", "surrogatepass")
    padded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    return padded | {form.rstrip("=") for form in padded}


def _html_encodings(text: str) -> set[str]:
    """Return `text` as Go, Python and other languages escape it for HTML and XML, and as Go escapes it in JSON."""
    forms = set()
    for quotes, apostrophe in (("&#34;", "&#39;"), ("&quot;", "&#x27;"), ("&quot;", "&apos;"), ("&quot;", "&#39;")):
        named = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        forms.add(named.replace('"', quotes).replace("'", apostrophe))
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return forms | {plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")}


def _secret_end(text: str, start: int, forms: tuple[str, ...]) -> int:
    """Return the end of the secret that begins at `start`, or `start` if no secret begins there.

    forms: the encodings of secrets to look for. The beginning of a secret at the end of a text that `printable` has cut
    is also found."""
    for form in forms:
        if text.startswith(form, start):
            return start + len(form)
    cut = text.find(_CUT, start)
    rest = text[start : cut if cut >= 0 else len(text)]
    return start + len(rest) if any(form.startswith(rest) for form in forms) else start


def redact_urls(text: str) -> str:
    """Return `text` with user information and the values of unknown query keys removed from all URLs and queries."""
    return _QUERY.sub(lambda found: _redact_query(found[0], bare=False), _URL.sub(_redact_url, text))


def _redact_url(found: re.Match[str]) -> str:
    """Return a URL without user information, and without values of unknown query keys."""
    userinfo = f"{HIDDEN}@" if found[2] else ""
    return f"{found[1]}{userinfo}{found[3]}{_redact_query(found[4], bare=True) if found[4] else ''}"


def _redact_query(text: str, *, bare: bool) -> str:
    """Return a query or fragment without the values of its keys, except for keys that are known to be safe.

    text: begins with `?` or `#`. bare: whether to hide parts without `=` as well."""
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
