"""Names of the package: what can be counted of the rules in docs/architecture.md, "Names"."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from tests.test_layering import modules, tree

# Participles that do not end in "ed", and words that do but are no participles.
_IRREGULAR = {
    *("begun", "brought", "built", "caught", "done", "found", "given", "gone", "held", "kept", "known", "left", "lost"),
    *("made", "met", "seen", "sent", "shown", "spent", "taken", "told", "written"),
}
_NO_PARTICIPLES = {"embed", "exceed", "feed", "need", "seed", "speed"}
_PREPOSITIONS = {"at", "before", "by", "for", "from", "in", "of", "on", "to", "with"}
# Words for which the glossary has another term.
_OTHER_TERMS = {
    *("agenda", "brought", "finding", "findings", "lane", "patience", "placement", "settled", "tally", "telling"),
    *("told", "verdict"),
}
# The same for what is above the registries, where an origin is that of RFC 6454.
_OTHER_TERMS_ABOVE = {"account", "destination", "origin", "origins", "place", "places", "inventory"}
_ABOVE = ("mirror.sync", "mirror.transfer")
MOST_PARTICIPLES = 25
MOST_ANY = 80

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions() -> Iterator[tuple[str, Definition]]:
    """Yield every class and function of the package with the name of its module."""
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: `_BlobCopier` and `_blob_copier` have the same."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def is_participle(name: str) -> bool:
    """Return whether a name is a participle, alone or before a preposition: `_judged`, `told_of`."""
    first, *others = words_of(name) or [""]
    if others and others[0] not in _PREPOSITIONS:
        return False  # an adjective: `unused_patterns`
    return first in _IRREGULAR or (first.endswith("ed") and first not in _NO_PARTICIPLES)


def names_in(node: Definition) -> Iterator[str]:
    """Yield the name of a class or function, and those of its parameters and fields."""
    yield node.name
    if isinstance(node, ast.ClassDef):
        yield from (
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        )
    else:
        parameters = node.args
        yield from (one.arg for one in (*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs))


def test_a_class_name_exists_once_in_the_package() -> None:
    classes = Counter(node.name for _, node in definitions() if isinstance(node, ast.ClassDef))
    assert [] == [name for name, count in classes.items() if count > 1]


def test_functions_are_named_by_verbs_or_nouns() -> None:
    """Properties such as `closed` may be participles, as those of Python's own files are."""
    found = [
        f"{module}: {node.name}"
        for module, node in definitions()
        if not isinstance(node, ast.ClassDef) and is_participle(node.name)
    ]
    assert len(found) <= MOST_PARTICIPLES, found


def test_names_use_the_terms_of_the_glossary() -> None:
    found = [
        f"{module}: {name}"
        for module, node in definitions()
        for name in names_in(node)
        if set(words_of(name)) & (_OTHER_TERMS | _OTHER_TERMS_ABOVE if module.startswith(_ABOVE) else _OTHER_TERMS)
    ]
    assert [] == found


def test_few_values_have_no_type() -> None:
    uses = [
        f"{module}:{node.lineno}"
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(uses) <= MOST_ANY, uses
