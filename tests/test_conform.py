"""The quick look at a configuration lets through what jsonschema accepts, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.config import breaches, schema, schema_text
from mirror.config.conform import conforms
from mirror.config.tree import Document, Mapping, Misread

ROOT = Path(__file__).resolve().parent.parent
SCHEMA: dict[str, Any] = json.loads(schema_text())
DEFINITIONS: dict[str, Any] = SCHEMA["$defs"]
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

EXAMPLES: list[Any] = [
    yaml.safe_load(text)
    for text in (
        *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))),
        *re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(encoding="utf-8"), re.DOTALL),
    )
]
# Keys and values that the schema knows, so that what is drawn comes near to what is valid.
WORDS = sorted({word for word in re.findall(r'"([^"\\]+)"', schema_text()) if len(word) < 20} - {"x-not-yet"})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 70)
    | st.sampled_from([*WORDS, "", "50 MiB", "60 s", "5/s", "60 s\n", "\n5/s", "7 GB!", "x" * 4096, "x" * 4097])
    | st.just(Misread("a date"))
)
EDGES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 64, 65, 1000, 1001, Misread("a date"), [], {}, [[]], [{}]),
    *("", "a", "/", "x" * 4096, "x" * 4097, "50 MiB", "50  MiB", "1.5 GB", "60 s", "60 s\n", "5/s", "-5/s", "30/m\nx"),
    *({"env": "A", "file": "b"}, {"file": "b"}, {"a": "b"}, ["a", ""], ["a", "a"], {"include": ["a"]}),
]
VALUES = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(WORDS), some, max_size=4)
)


def accepted(data: Any) -> bool:
    """By jsonschema, and without what is not in this version."""
    document = Document("f", Mapping(0, 0), "")
    breaches.report(document, data, SCHEMA)
    assert VALIDATOR.is_valid(data) or document.problems
    return not document.problems


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (mapping or list, key or index) in a document."""
    if isinstance(data, dict | list):
        for key in list(data) if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from places(data[key])


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """An example in which a few things were replaced, added or left out."""
    data = copy.deepcopy(draw(st.sampled_from(EXAMPLES)))
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(data))
        if not found:
            break
        inside, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["replace", "remove", "add", "known"]))
        if how == "replace":
            inside[key] = draw(VALUES)
        elif how == "remove":
            del inside[key]
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(WORDS))] = draw(VALUES if how == "add" else SCALARS)
        else:
            inside.append(draw(VALUES))
    return data


@given(documents() | VALUES)
@example({"version": True, "mirrors": [{"source": "a/b", "targets": ["c/d"]}]})
@example({"version": 1, "mirrors": [{"source": "a/b", "targets": ["c/d"], "index": "rewrite"}]})
@example({"version": 1, "mirrors": [{"source": "a/b", "targets": ["c/d"]}], "parallel": {"images": True}})
def test_a_document_conforms_if_and_only_if_it_is_accepted(data: Any) -> None:
    assert accepted(data) == conforms(data, SCHEMA, DEFINITIONS)


@pytest.mark.parametrize("part", [part for _, part in schema.parts()], ids=[key for key, _ in schema.parts()])
def test_each_part_of_the_schema_is_read_as_jsonschema_reads_it(part: dict[str, Any]) -> None:
    later = part.get("x-not-yet")
    part = {word: said for word, said in part.items() if word not in ("$ref", "x-not-yet")}  # it is resolved
    validator = jsonschema.Draft202012Validator({**part, "$defs": DEFINITIONS})
    values = [*EDGES, *part.get("enum", ()), *([edge] for edge in EDGES), *({"env": edge} for edge in EDGES)]
    wrong = [value for value in values if validator.is_valid(value) != conforms(value, part, DEFINITIONS)]
    assert [] == wrong
    if later is not None:
        able = [value for value in values if conforms(value, {**part, "x-not-yet": later}, DEFINITIONS)]
        assert [value for value in part.get("enum", ()) if later is not True and value not in later] == able


@pytest.mark.parametrize("data", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_conforms(data: Any) -> None:
    assert conforms(data, SCHEMA, DEFINITIONS)


@pytest.mark.parametrize(
    "part", [{"format": "uri"}, {"type": "number"}, {"$ref": "#/$defs/nowhere"}, {"$ref": "#/properties/log"}]
)
def test_what_is_not_known_here_is_left_to_jsonschema(part: dict[str, Any]) -> None:
    assert not conforms("x", part, DEFINITIONS)
    assert not conforms(1, part, DEFINITIONS)
