"""What the schema does not allow, in sentences: jsonschema finds it, the words are ours."""

from __future__ import annotations

import difflib
from typing import Any

from mirror.config.problems import SECRET_KEYS, KeyPath, quote_key, value_shown
from mirror.config.schema import NOT_YET, conforms, places_of, resolved, validator
from mirror.config.suggestions import YAML_BOOLEANS, is_accepted, text_instead
from mirror.config.tree import Document, Scalar, read_as
from mirror.selection.locations import MATCHED

MATCHED_NAME = MATCHED.strip("{}")

_LATER = "not in this version"
_REQUIRED = ("version", "mirrors", "source", "targets")
# Keys of other tools, and the keys that have the same meaning here.
_SYNONYMS = {
    **dict.fromkeys(("src", "from"), "source"),
    **dict.fromkeys(("dst", "dest", "destination", "destinations", "to"), "targets"),
    **dict.fromkeys(("user", "login-name"), "username"),
    **dict.fromkeys(("pass", "passwd", "pwd", "token"), "password"),
    **dict.fromkeys(("http", "plaintext"), "plain-http"),
    **dict.fromkeys(("read", "write"), "idle"),
}
_INSECURE = ("insecure", "tls-verify", "skip-tls-verify", "insecure-skip-verify", "insecure-skip-tls-verify")


def check(document: Document, data: Any) -> None:
    """Add to `document` everything in `data`, its tree as plain values, that the schema does not allow.

    A key that is not in this version has one message: its value is not checked."""
    errors = list(validator().iter_errors(data))
    later = [tuple(error.absolute_path) for error in errors if error.validator == NOT_YET]
    for error in errors:
        path = tuple(error.absolute_path)
        if error.validator == NOT_YET or not any(path[: len(one)] == one for one in later):
            _report(document, path, error)


def _report(document: Document, path: KeyPath, error: Any) -> None:
    keyword, part, value = error.validator, resolved(error.schema), error.instance
    if keyword == NOT_YET:
        document.add(path, _not_yet(part, value))
    elif keyword == "additionalProperties":
        for key in value:
            if key not in part.get("properties", {}):
                document.add(path, _unknown(key, part), key=key)
    elif keyword == "required":
        guesses = {_nearest(key, part) for key in value if key not in part["properties"]}
        for key in error.validator_value:
            if key not in value and key not in guesses:
                document.add(path, f"missing key {quote_key(key)}")
    elif keyword in ("minItems", "minProperties", "minLength"):
        document.add(path, _empty(path, part, value))
    elif keyword == "maxLength":
        document.add(path, f"too long: at most {error.validator_value} characters")
    elif keyword == "maxProperties":
        document.add(path, f"want one of {', '.join(part['properties'])}, got {len(value)} of them")
    else:
        document.add(path, _mistyped(document, path, part, value))


def _not_yet(part: dict[str, Any], value: object) -> str:
    if part[NOT_YET] is True:
        return f"{_LATER}; remove the key"
    return f"{value_shown(value)} is {_LATER}; write {' or '.join(_able(part))}, or remove the key"


def _unknown(key: str, part: dict[str, Any]) -> str:
    elsewhere = places_of(key)
    if elsewhere:
        return f"unknown key {quote_key(key)} here; its place is {elsewhere[-1]}"
    if _spelt(key) in _INSECURE and "plain-http" in part.get("properties", {}):
        how = "`plain-http: true` is for http, `tls: {verify: false}` for https with a certificate that is not checked"
        return f"unknown key {quote_key(key)}; {how}"
    nearest = _nearest(key, part)
    if nearest and part["properties"][nearest].get(NOT_YET) is True:
        return f"unknown key {quote_key(key)}; {quote_key(nearest)} is {_LATER}; remove the key"
    if nearest:
        return f"unknown key {quote_key(key)}; did you mean {quote_key(nearest)}?"
    known = [name for name, below in part.get("properties", {}).items() if below.get(NOT_YET) is not True]
    return f"unknown key {quote_key(key)}; want one of {', '.join(known)}"


def _nearest(key: str, part: dict[str, Any]) -> str | None:
    """The key that was probably meant. One that is not in this version only if it is spelt nearly the same."""
    known = part.get("properties", {})
    able = [name for name, below in known.items() if below.get(NOT_YET) is not True]
    synonym = _SYNONYMS.get(_spelt(key))
    if synonym in able:
        return synonym
    found = difflib.get_close_matches(_spelt(key), able, n=1, cutoff=0.7)
    found += difflib.get_close_matches(_spelt(key), known, n=1, cutoff=0.85)
    return found[0] if found else None


def _spelt(key: str) -> str:
    """A key as the language spells its own."""
    return key.lower().replace("_", "-")


def _empty(path: KeyPath, part: dict[str, Any], value: object) -> str:
    if path[-1:] == ("tags",):
        return "empty, so nothing would be selected; name tags, or remove the key for every tag"
    if path[-1:] == ("include",):
        return "empty, so nothing would be selected; name patterns, or remove the key"
    kind = "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else '""'
    return f"want {_want(part)}, got {kind} with nothing in it" if kind != '""' else f'want {_want(part)}, got ""'


def _mistyped(document: Document, path: KeyPath, part: dict[str, Any], value: object) -> str:
    node = document.node(path)
    text = node.text if isinstance(node, Scalar) else ""
    secret = not SECRET_KEYS.isdisjoint(path[-2:])
    kinds = part.get("type", "")
    if "string" in kinds and isinstance(node, Scalar) and not isinstance(value, str):
        if secret:
            return f"want {_want(part)}, got something that YAML does not take for a text; put it in quotes"
        if text:
            return _misread(path, part, text, read_as(value))
    if value == "" and "array" in kinds:
        return _empty(path, part, value)
    if value is None:
        hint = "; give it a value" if path[-1:] and path[-1] in _REQUIRED else "; remove the key or give it a value"
    else:
        hint = "" if secret else _hint(path, part, value)
    return f"want {_want(part)}, got {'something else' if secret else _got(value, text)}{hint}"


def _misread(path: KeyPath, part: dict[str, Any], text: str, shown: str) -> str:
    """Of a text that YAML reads as something else."""
    what = "tag read as" if "tags" in path[-2:] and isinstance(path[-1], int) else "read as"
    instead = text_instead(path, part, text)
    return f"{what} {shown}; write {value_shown(instead)}" if instead else f"{what} {shown}; want {_want(part)}"


def _hint(path: KeyPath, part: dict[str, Any], value: object) -> str:
    """What to write instead of a value, if that can be said."""
    kinds = part.get("type", "")
    if isinstance(value, dict) and value and all(item is None for item in value.values()) and "string" in kinds:
        return f"; put a text with {{ and }} in quotes{_write_template(path, next(iter(value)))}"
    if not isinstance(value, str):
        return ""
    instead = None
    close = difflib.get_close_matches(value.lower(), _able(part), n=1)
    if close:
        return f"; did you mean {close[0]}?"
    if "array" in kinds and is_accepted((*path, 0), resolved(part["items"]), value):
        instead = f"[{value_shown(value)}]"
    elif "boolean" in kinds and value.lower() in YAML_BOOLEANS:
        instead = f"{value.lower()}, without quotes"
    elif value.isdecimal() and conforms(int(value), part):
        instead = f"{int(value)}, without quotes"
    elif "string" in kinds:
        meant = text_instead(path, part, value)
        instead = value_shown(meant) if meant else None
    return f"; write {instead}" if instead else ""


def _write_template(path: KeyPath, name: str) -> str:
    """Of a `{repository}` without quotes, which YAML reads as a mapping."""
    return f'; write "registry.example.com/{{{MATCHED_NAME}}}"' if "targets" in path and name == MATCHED_NAME else ""


def _able(part: dict[str, Any]) -> list[str]:
    """The values of an enumeration that have an effect in this version."""
    later = part.get(NOT_YET)
    return [choice for choice in part.get("enum", ()) if not isinstance(later, list) or choice not in later]


def _got(value: object, text: str) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return value_shown(text) if isinstance(value, str) else text[:80]


_KINDS = {"string": "a text", "array": "a list", "object": "a mapping", "boolean": "true or false"}


def _want(part: dict[str, Any]) -> str:
    if "x-want" in part:
        return str(part["x-want"])
    if "enum" in part:
        return f"one of {', '.join(_able(part))}"
    if "minimum" in part:
        return f"{part['minimum']}..{part['maximum']}"
    kinds = part.get("type", "")
    if part.get("minItems") and kinds == "array":
        return "a list with at least one entry"
    return " or ".join(_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
