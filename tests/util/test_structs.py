"""Representations of values do not contain secrets."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from mirror.util.structs import RedactedStruct, Struct

PACKAGE = Path(__file__).resolve().parents[2] / "mirror"
SECRETS = {"password", "secret", "identity_token", "registry_token", "proxy", "header", "headers"}


def structs() -> list[type[Struct]]:
    """Return every Struct class of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        module = import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)) if names else None
        members = [getattr(module, name) for name in names]
        found += [one for one in members if isinstance(one, type) and issubclass(one, Struct)]
    return found


@pytest.mark.parametrize(
    "kind", [kind for kind in structs() if issubclass(kind, RedactedStruct)], ids=lambda kind: kind.__name__
)
def test_the_representation_of_a_value_omits_hidden_fields(kind: type[RedactedStruct]) -> None:
    canaries = {name: f"CANARY-{name}" for name in kind.__struct_fields__}
    value = kind(*canaries.values())
    words = f"{value!r} {value.__rich_repr__()!r}"
    assert set(kind.HIDDEN) <= set(canaries)
    assert not [name for name in kind.HIDDEN if canaries[name] in words]


def test_fields_with_the_name_of_a_secret_are_hidden() -> None:
    wanting = {
        f"{kind.__name__}.{name}"
        for kind in structs()
        for name in SECRETS.intersection(kind.__struct_fields__)
        if name not in (kind.HIDDEN if issubclass(kind, RedactedStruct) else ())
    }
    # A `Secret` has a representation of its own. Headers of responses, and of requests to `mirror serve`, are not ours.
    assert wanting == {
        "HostSettings.password",
        "PathLogin.password",
        "PageResponse.headers",
        "Response.headers",
        "ResponseHead.headers",
        "ServerResponse.headers",
        "ServerRequest.header",
    }
