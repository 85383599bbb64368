"""Converts validation errors of jsonschema to messages that suggest a remedy."""

from __future__ import annotations

import difflib
import re
from typing import Any

from mirror.config.problems import SECRET_KEYS, KeyPath, quote_key, quote_value
from mirror.config.schema import NOT_YET, conforms, paths_of, resolve_reference, validator
from mirror.config.suggestions import YAML_BOOLEANS, is_accepted, suggest_text
from mirror.config.tree import Document, Scalar, describe_parsed_value
from mirror.selection.locations import MATCHED

MATCHED_NAME = MATCHED.strip("{}")

_LATER = "not in this version"
_NUMBER = re.compile("[0-9]{1,18}")
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
# Words in the names of the settings with which other tools configure keyless signatures.
_KEYLESS = ("keyless", "identity", "issuer", "certificate", "fulcio", "rekor", "trusted-root", "oidc")


def check(document: Document, data: Any) -> None:
    """Add a problem to `document` for each violation of the schema.

    data: the document as dicts, lists and scalars. The values of keys that this version does not support are not
    checked."""
    errors = list(validator().iter_errors(data))
    later = [tuple(error.absolute_path) for error in errors if error.validator == NOT_YET]
    for error in errors:
        path = tuple(error.absolute_path)
        if error.validator == NOT_YET or not any(path[: len(one)] == one for one in later):
            _report(document, path, error)


def _report(document: Document, path: KeyPath, error: Any) -> None:
    """Add the problems for one validation error of jsonschema to the document."""
    keyword, part, value = error.validator, resolve_reference(error.schema), error.instance
    if keyword == NOT_YET:
        document.add(path, _not_yet_message(part, value))
    elif keyword == "additionalProperties":
        for key in value:
            if key not in part.get("properties", {}):
                document.add(path, _unknown_key_message(key, part), key=key)
    elif keyword == "required":
        guesses = {_nearest_key(key, part) for key in value if key not in part["properties"]}
        for key in error.validator_value:
            if key not in value and key not in guesses:
                document.add(path, f"missing key {quote_key(key)}")
    elif keyword in ("minItems", "minProperties", "minLength"):
        document.add(path, _empty_message(path, part, value))
    elif keyword == "maxLength":
        document.add(path, f"too long: at most {error.validator_value} characters are allowed")
    elif keyword == "maxProperties":
        document.add(path, f"expected exactly one of {', '.join(part['properties'])}, got {len(value)}")
    else:
        document.add(path, _type_message(document, path, part, value))


def _not_yet_message(part: dict[str, Any], value: object) -> str:
    """Return the message for a key or value that this version does not support."""
    if part[NOT_YET] is True:
        return f"{_LATER}; remove the key"
    return f"{quote_value(value)} is {_LATER}; write {' or '.join(_available_values(part))}, or remove the key"


def _unknown_key_message(key: str, part: dict[str, Any]) -> str:
    """Return the message for an unknown key, with a suggestion if there is a similar key."""
    elsewhere = paths_of(key)
    if elsewhere and _SYNONYMS.get(_normalize_key(key)) not in part.get("properties", {}):
        of_mirrors = [where for where in elsewhere if where.startswith("mirrors[].")]
        return f"unknown key {quote_key(key)} here; it belongs at {' or '.join(of_mirrors or elsewhere[-1:])}"
    if _normalize_key(key) in _INSECURE and "plain-http" in part.get("properties", {}):
        how = "use `plain-http: true` for http, or `tls: {verify: false}` for https without verification"
        return f"unknown key {quote_key(key)}; {how}"
    if "keys" in part.get("properties", {}) and any(word in _normalize_key(key) for word in _KEYLESS):
        how = "keyless signatures are not supported; list the public keys under `keys`"
        return f"unknown key {quote_key(key)}; {how}"
    nearest = _nearest_key(key, part)
    if nearest and part["properties"][nearest].get(NOT_YET) is True:
        return f"unknown key {quote_key(key)}; {quote_key(nearest)} is {_LATER}; remove the key"
    if nearest:
        return f"unknown key {quote_key(key)}; did you mean {quote_key(nearest)}?"
    known = [name for name, below in part.get("properties", {}).items() if below.get(NOT_YET) is not True]
    return f"unknown key {quote_key(key)}; expected one of {', '.join(known)}"


def _nearest_key(key: str, part: dict[str, Any]) -> str | None:
    """Return the known key that the user probably meant by `key`, or None.

    A key that this version does not support must be more similar than a supported key."""
    known = part.get("properties", {})
    available = [name for name, below in known.items() if below.get(NOT_YET) is not True]
    synonym = _SYNONYMS.get(_normalize_key(key))
    if synonym in available:
        return synonym
    found = difflib.get_close_matches(_normalize_key(key), available, n=1, cutoff=0.7)
    found += difflib.get_close_matches(_normalize_key(key), known, n=1, cutoff=0.85)
    return found[0] if found else None


def _normalize_key(key: str) -> str:
    """Return a key in the spelling of this configuration: lower case, with hyphens."""
    return key.lower().replace("_", "-")


def _empty_message(path: KeyPath, part: dict[str, Any], value: object) -> str:
    """Return the message for a list, mapping or string that must not be empty."""
    if path[-1:] == ("tags",):
        return "empty, so nothing would be selected; list tags, or remove the key to select every tag"
    if path[-1:] == ("include",):
        return "empty, so nothing would be selected; list patterns, or remove the key"
    kind = "an empty list" if isinstance(value, list) else "an empty mapping" if isinstance(value, dict) else '""'
    return f"expected {_describe_allowed(part)}, got {kind}"


def _type_message(document: Document, path: KeyPath, part: dict[str, Any], value: object) -> str:
    """Return the message for a value that has the wrong type or is outside its range."""
    node = document.node(path)
    text = node.text if isinstance(node, Scalar) else ""
    secret = not SECRET_KEYS.isdisjoint(path[-2:])
    kinds = part.get("type", "")
    if "string" in kinds and isinstance(node, Scalar) and not isinstance(value, str):
        if secret:
            return (
                f"expected {_describe_allowed(part)}, got a value that YAML does not read as a string; put it in quotes"
            )
        if text:
            return _misread_message(path, part, text, describe_parsed_value(value))
    if value == "" and "array" in kinds:
        return _empty_message(path, part, value)
    if value is None:
        hint = "; give it a value" if path[-1:] and path[-1] in _REQUIRED else "; remove the key or give it a value"
    else:
        hint = "" if secret else _hint(path, part, value)
    shown = "a value of another type" if secret else _describe_value(value, text)
    return f"expected {_describe_allowed(part)}, got {shown}{hint}"


def _misread_message(path: KeyPath, part: dict[str, Any], text: str, shown: str) -> str:
    """Return the message for an unquoted string that YAML reads as another type.

    text: the string. shown: a description of the value that YAML reads."""
    what = "tag read as" if "tags" in path[-2:] and isinstance(path[-1], int) else "read as"
    instead = suggest_text(path, part, text)
    return (
        f"{what} {shown}; write {quote_value(instead)}"
        if instead
        else f"{what} {shown}; expected {_describe_allowed(part)}"
    )


def _hint(path: KeyPath, part: dict[str, Any], value: object) -> str:
    """Return the end of a message that suggests a valid value, or an empty string if there is no suggestion."""
    kinds = part.get("type", "")
    if isinstance(value, dict) and value and all(item is None for item in value.values()) and "string" in kinds:
        return f"; put a string with {{ and }} in quotes{_template_hint(path, next(iter(value)))}"
    if not isinstance(value, str):
        return ""
    instead = None
    close = difflib.get_close_matches(value.lower(), _available_values(part), n=1)
    if close:
        return f"; did you mean {close[0]}?"
    if "array" in kinds and is_accepted((*path, 0), resolve_reference(part["items"]), value):
        instead = f"[{quote_value(value)}]"
    elif "boolean" in kinds and value.lower() in YAML_BOOLEANS:
        instead = f"{value.lower()}, without quotes"
    elif _NUMBER.fullmatch(value) and conforms(int(value), part):
        instead = f"{int(value)}, without quotes"
    elif "string" in kinds:
        meant = suggest_text(path, part, value)
        instead = quote_value(meant) if meant else None
    return f"; write {instead}" if instead else ""


def _template_hint(path: KeyPath, name: str) -> str:
    """Return the hint for an unquoted `{repository}`, which YAML reads as a mapping."""
    return f'; write "registry.example.com/{{{MATCHED_NAME}}}"' if "targets" in path and name == MATCHED_NAME else ""


def _available_values(part: dict[str, Any]) -> list[str]:
    """Return the values of an enumeration that this version supports."""
    later = part.get(NOT_YET)
    return [choice for choice in part.get("enum", ()) if not isinstance(later, list) or choice not in later]


def _describe_value(value: object, text: str) -> str:
    """Describe an invalid value for a message. text: the text of a scalar in the file."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return quote_value(text) if isinstance(value, str) else text[:80]


_KINDS = {"string": "a string", "array": "a list", "object": "a mapping", "boolean": "true or false"}


def _describe_allowed(part: dict[str, Any]) -> str:
    """Describe the values that a part of the schema allows, for a message."""
    if "x-want" in part:
        return str(part["x-want"])
    if "enum" in part:
        return f"one of {', '.join(_available_values(part))}"
    if "minimum" in part:
        return f"{part['minimum']}..{part['maximum']}"
    kinds = part.get("type", "")
    if part.get("minItems") and kinds == "array":
        return "a list with at least one entry"
    return " or ".join(_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
