"""What other tools do with the files in tests/migration/data: the source reference of each target reference.

regsync and skopeo are run with real registries. image-syncer and dregsy cannot be installed with `go install`, so their
rules are evaluated here, with the Go libraries that they use, as docs/migration.md describes them.

`python -m tests_real.migration_peers` writes the answers to tests/migration/data/answers.json, and those of the Go
libraries to libraries.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.migration.expressions import EXPRESSIONS, TAGS
from tests.migration.fixture import DATA, DIGEST, REPOSITORIES, SOURCE, TARGET, files
from tests.registries.client import sha256
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push
from tests_real.installed import BENCH, find_tool

ANSWERS = DATA / "answers.json"
LIBRARIES = DATA / "libraries.json"
VARIABLES = {"MIGRATION_TARGET": TARGET, "MIGRATION_USER": "joe"}
PREFIX = "hub"  # the repository prefix in the DESTINATION of skopeo

Pairs = dict[str, str]


class Fixture:
    """A registry with the repositories of tests/migration/fixture.py. Use with `with`."""

    def __init__(self, folder: Path) -> None:
        self.registry = RealRegistry(folder, "source")
        self.digests: dict[str, str] = {}  # digest -> reference

    def __enter__(self) -> Fixture:
        self.registry.__enter__()
        for repository, tags in REPOSITORIES.items():
            graph = Graph(repository)
            for tag in tags.split():
                digest = graph.image(tag, layers=[graph.layer(tag, size=100)], label=tag).digest
                self.digests[digest] = f"{SOURCE}/{repository}:{tag}"
            push(self.registry, repository, graph)
        assert DIGEST in self.digests
        return self

    def __exit__(self, *caught: object) -> None:
        self.registry.close()

    def localize(self, text: str, target: RealRegistry) -> str:
        """Return the text with the addresses of the registries in place of their names."""
        return text.replace(SOURCE, self.registry.host).replace(TARGET, target.host)

    def read_pairs(self, target: RealRegistry) -> Pairs:
        """Return the source of each reference in a registry, by the digest of its manifest."""
        pairs: Pairs = {}
        with target.client() as client:
            for repository in client.repositories():
                found = {tag: sha256(client.manifest(repository, tag).body) for tag in client.tags(repository)}
                pairs |= {f"{TARGET}/{repository}:{tag}": self.digests[digest] for tag, digest in found.items()}
                path = f"/v2/{repository}/manifests/{DIGEST}"
                accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
                if DIGEST not in found.values() and client.ask("HEAD", path, headers=accept).status == 200:
                    pairs[f"{TARGET}/{repository}@{DIGEST}"] = self.digests[DIGEST]
        return pairs


def run_regsync(fixture: Fixture, file: Path, target: RealRegistry, folder: Path) -> None:
    """Run `regsync once`. Raises AssertionError if it fails."""
    configuration = folder / "regsync.yml"
    configuration.write_text(fixture.localize(file.read_text(encoding="utf-8"), target), encoding="utf-8")
    variables = {name: value.replace(TARGET, target.host) for name, value in VARIABLES.items()}
    _run([find_tool("regsync", BENCH, "bench-tools"), "once", "-c", str(configuration)], folder, variables)


def run_skopeo(fixture: Fixture, file: Path, target: RealRegistry, folder: Path) -> None:
    """Run `skopeo sync`. Raises AssertionError if it fails."""
    configuration = folder / "skopeo.yml"
    configuration.write_text(fixture.localize(file.read_text(encoding="utf-8"), target), encoding="utf-8")
    flags = ["--insecure-policy", "sync", "--src=yaml", "--dest=docker", "--dest-tls-verify=false", "--keep-going"]
    _run(["skopeo", *flags, str(configuration), f"{target.host}/{PREFIX}"], folder, {})


def _run(command: list[str], folder: Path, variables: Mapping[str, str]) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"


def ask_libraries(questions: list[dict[str, Any]]) -> list[list[str] | None]:
    """Return the answers of the program in tests_real/versions."""
    program = find_tool("versions", BENCH, "test-migration")
    asked = json.dumps(questions)
    done = subprocess.run([program], input=asked, capture_output=True, text=True, timeout=60, check=True)
    answers: list[list[str] | None] = json.loads(done.stdout)
    return answers


def _select(library: str, expression: str, texts: Iterable[str]) -> list[str]:
    (answer,) = ask_libraries([{"library": library, "expression": expression, "texts": list(texts)}])
    assert answer is not None, f"{library} does not accept {expression}"
    return answer


def skopeo_version_pairs(file: Path) -> Pairs:
    """Return what the ranges in a file of skopeo select. Debian's skopeo is too old for `images-by-semver`."""
    pairs: Pairs = {}
    for block in yaml.safe_load(file.read_text(encoding="utf-8")).values():
        for repository, text in (block.get("images-by-semver") or {}).items():
            for tag in _select("masterminds", text, REPOSITORIES[repository].split()):
                name = repository.rpartition("/")[2]
                pairs[f"{TARGET}/{PREFIX}/{name}:{tag}"] = f"{SOURCE}/{repository}:{tag}"
    return pairs


def image_syncer_pairs(file: Path) -> Pairs:
    """Return what image-syncer does with a file."""
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    pairs: Pairs = {}
    for source, targets in document.get("images", document).items():
        repository, tags, digest = _image_syncer_source(source)
        for text in targets if isinstance(targets, list) else [targets]:
            target = re.sub(r"\$\{?(\w+)\}?", lambda found: VARIABLES[found[1]], text)
            head, _, last = target.rpartition("/")
            name, _, new = last.partition(":")
            if digest:
                pairs[f"{head}/{name}:{new}" if new else f"{head}/{name}@{digest}"] = f"{SOURCE}/team/app:1.0.0"
                continue
            new_tags = new.split(",") if new else tags
            assert len(new_tags) == len(tags)
            pairs |= {
                f"{head}/{name}:{new_tag}": f"{repository}:{tag}" for tag, new_tag in zip(tags, new_tags, strict=True)
            }
    return pairs


def _image_syncer_source(source: str) -> tuple[str, list[str], str]:
    """Return the repository, the tags and the digest of a source."""
    repository, at, digest = source.partition("@")
    expression = re.fullmatch(r"(.+?):/(.*)/", source)
    if at:
        return repository, [], digest
    if expression:
        listed = REPOSITORIES[expression[1].removeprefix(f"{SOURCE}/")].split()
        return expression[1], _select("regexp", expression[2], listed), ""
    repository, colon, tags = source.partition(":")
    return repository, tags.split(",") if colon else REPOSITORIES[repository.removeprefix(f"{SOURCE}/")].split(), ""


def dregsy_pairs(file: Path) -> Pairs:
    """Return what dregsy does with a file."""
    pairs: Pairs = {}
    for task in yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)["tasks"]:  # noqa: S506 (strings only)
        for mapping in task["mappings"]:
            for repository, path in _dregsy_paths(mapping):
                target = f"{task['target']['registry']}{path}"
                for tag, name in _dregsy_tags(mapping.get("tags", []), REPOSITORIES[repository].split()):
                    pairs[f"{target}{name}"] = f"{SOURCE}/{repository}:{tag}"
    return pairs


def _dregsy_paths(mapping: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the source repositories of a mapping with their paths on the target."""
    old, new = mapping["from"], mapping.get("to", "")
    by_expression = old.startswith("regex:")
    found = _select("regexp", _anchored(old[6:]), REPOSITORIES) if by_expression else [old.strip("/")]
    for repository in found:
        path = f"/{repository}"
        if new.startswith("regex:"):
            expression, _, replacement = new[6:].partition(",")
            asked = {"library": "replace", "expression": expression, "replacement": replacement, "texts": [path]}
            (answer,) = ask_libraries([asked])
            assert answer is not None
            path = answer[0]
        elif new:
            path = f"/{new.strip('/')}{path}" if by_expression else f"/{new.strip('/')}"
        yield repository, path


def _anchored(expression: str) -> str:
    start = "" if expression.startswith("^") else "^"
    return f"{start}{expression}{'' if expression.endswith('$') else '$'}"


def _dregsy_tags(rules: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """Return the selected tags, each with the end of its reference on the target."""
    filters = {
        kind: [rule.partition(":")[2].strip() for rule in rules if rule.startswith(f"{kind}:")]
        for kind in ("semver", "regex", "keep")
    }
    digests = [rule for rule in rules if "sha256:" in rule]
    verbatim = [rule for rule in rules if ":" not in rule]
    found = {tag for text in filters["semver"] for tag in _select("blang", text, tags)}
    found |= {tag for text in filters["regex"] for tag in _match(text, tags)}
    if not (digests or verbatim or filters["semver"] or filters["regex"]):
        found = set(tags)
    for text in filters["keep"]:
        found &= set(_match(text, tags))
    pinned = [
        ("1.0.0", f":{name[:-1]}" if name else f"@{DIGEST}")
        for name in (one[: one.index("sha256:")] for one in digests)
    ]
    return [*((tag, f":{tag}") for tag in sorted(found | set(verbatim))), *pinned]


def _match(text: str, tags: list[str]) -> list[str]:
    matched = _select("regexp", _anchored(text.removeprefix("!")), tags)
    return [tag for tag in tags if tag not in matched] if text.startswith("!") else matched


def collect_answers(folder: Path) -> dict[str, Pairs]:
    """Return the answers of all tools, by the name of the file below tests/migration/data."""
    answers: dict[str, Pairs] = {}
    with Fixture(folder) as fixture:
        for tool, run in (("regsync", run_regsync), ("skopeo", run_skopeo)):
            for file in files(tool):
                with RealRegistry(folder / f"{tool}-{file.stem}", "target") as target:
                    run(fixture, file, target, folder)
                    answers[f"{tool}/{file.name}"] = fixture.read_pairs(target)
        for file in files("skopeo"):
            answers[f"skopeo/{file.name}"] |= skopeo_version_pairs(file)
    for file in files("image-syncer"):
        answers[f"image-syncer/{file.name}"] = image_syncer_pairs(file)
    for file in files("dregsy"):
        answers[f"dregsy/{file.name}"] = dregsy_pairs(file)
    return answers


def collect_library_answers() -> dict[str, dict[str, str | None]]:
    """Return the tags that each expression selects, by library and expression; None if the library rejects it."""
    cases = [(library, one) for library, expressions in EXPRESSIONS.items() for one in expressions]
    answers = ask_libraries([{"library": library, "expression": one, "texts": TAGS} for library, one in cases])
    found: dict[str, dict[str, str | None]] = {library: {} for library in EXPRESSIONS}
    for (library, expression), answer in zip(cases, answers, strict=True):
        found[library][expression] = None if answer is None else " ".join(answer)
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as work:
        os.environ.pop("DOCKER_CONFIG", None)
        recorded = collect_answers(Path(work))
    ANSWERS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    libraries = json.dumps(collect_library_answers(), indent=1, sort_keys=True)
    LIBRARIES.write_text(libraries + "\n", encoding="utf-8")
