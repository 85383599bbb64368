"""`mirror inventory`: lists the content of layouts, bundles and targets. `mirror bundle` uses parts of this module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mirror.commands.session import spool_directory
from mirror.commands.stores import Stores
from mirror.config import Config, load
from mirror.errors import OK, ConfigError, LocalError, MirrorError, Refused, worst_exit_code
from mirror.layout.bundle.reader import open_bundle
from mirror.layout.bundle.store import BundleStore
from mirror.layout.bundle.verify import missing_path_error
from mirror.layout.directory import LayoutStore
from mirror.layout.inventory import MAX_BYTES, MAX_NODES, Inventory, ManifestInfo, RepositoryContents
from mirror.layout.inventory_reader import StoreSurvey, survey_store
from mirror.limits import Limits
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.reference import is_path, is_tag
from mirror.output.redaction import Redactor
from mirror.selection.locations import MATCHED
from mirror.selection.repository_rules import can_match
from mirror.store import Source
from mirror.util.cancellation import Work
from mirror.util.shell_commands import insert_path
from mirror.util.signals import run_with_signals
from mirror.util.structs import Struct

_PRESENT_RESULTS = ("copied", "up-to-date")  # results after which the target has the image
_NAME_HINT = (
    "another tool created it; copy it with `mirror sync` from a source with a repository name "
    "(FILE.tar:REPOSITORY or oci:DIR:REPOSITORY), and use the copy"
)


class CommandOutput(Struct, frozen=True):
    """The output of `mirror bundle` or `mirror inventory`.

    lines: the lines for standard output. code: the exit code. problems: errors to print to standard error."""

    lines: Sequence[str]
    code: int = OK
    problems: Sequence[MirrorError] = ()


def make_inventory(path: Path) -> CommandOutput:
    """Return the inventory of a bundle, a layout, the targets of a configuration, or the images in a report, as JSON.

    Raises ConfigError, LocalError, Refused, Cancelled."""
    found = run_with_signals(lambda work: _survey_path(path, work))
    lines = found.inventory.render().decode().splitlines()
    return CommandOutput(lines, worst_exit_code(one.exit_code for one in found.problems), found.problems)


def _survey_path(path: Path, work: Work) -> StoreSurvey:
    """List the content of the layout, bundle or report at `path`, or of the targets of the configuration at `path`."""
    if path.is_dir():
        return survey_on_disk(path, work)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise missing_path_error(path) from None
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return _survey_bundle(path, work)
    if head.lstrip().startswith(b"{") and b'"images"' in path.read_bytes()[: MAX_BYTES + 1]:
        return StoreSurvey(_inventory_from_report(path))
    return _survey_configuration(path, work)


def _survey_configuration(path: Path, work: Work) -> StoreSurvey:
    """List the content of the targets of the configuration at `path`. Hints contain its path."""
    try:
        found = _survey_targets(load(path), work)
    except MirrorError as error:
        error.hint = insert_path(error.hint, path)
        raise
    for problem in found.problems:
        problem.hint = insert_path(problem.hint, path)
    return found


# ---- on disk


def survey_on_disk(path: Path, work: Work, *, bare: bool = False) -> StoreSurvey:
    """List the content of the layout or bundle at `path` by reading all its manifests.

    bare: whether to accept a store whose tags have no repository name."""
    if path.is_dir():
        layout = LayoutStore(path)
        try:
            return _survey_store(layout, str(path), work, bare=bare)
        finally:
            layout.close()
    if not path.exists():
        raise missing_path_error(path)
    bundle = BundleStore(path, str(path), spool=path.parent)
    try:
        found = _survey_store(bundle, str(path), work, bare=bare)
        incomplete_error = bundle.incomplete_error()
        found.problems += [incomplete_error] if incomplete_error is not None else []
        return found
    finally:
        bundle.close()


def _survey_store(source: Source, what: str, work: Work, *, bare: bool) -> StoreSurvey:
    """List the content of all repositories in a store. what: the store's name in messages."""
    names = [name for name in source.repositories("", work) if isinstance(name, str)] or [""] * bare
    if not names:
        raise Refused(f"the tags in {what} have no repository names", hint=_NAME_HINT)
    return survey_store(source, names, work)


def _survey_bundle(path: Path, work: Work) -> StoreSurvey:
    """Return the inventory in a bundle. If the bundle contains none, create one by reading all manifests."""
    bundle = open_bundle(path, str(path), path.parent, work)
    try:
        missing = bundle.missing_digests()
        if missing:
            raise Refused(f"{path}: {missing[0]} is missing", hint="copy the bundle again", code="bundle_incomplete")
        if bundle.inventory is not None:
            return StoreSurvey(bundle.inventory)
    finally:
        bundle.close()
    return survey_on_disk(path, work)


# ---- registries


def _survey_targets(config: Config, work: Work) -> StoreSurvey:
    """List the content that every target host of a configuration has."""
    with Stores(config, Limits(), Redactor(), spool_directory(config)) as stores:
        wanted: dict[str, dict[str, None]] = {}
        for mirror in config.mirrors:
            for target in mirror.targets:
                wanted.setdefault(target.host, {})[target.path] = None
        found = [
            survey_store(stores.registries[host], _expand_wildcards(stores.registries[host], paths, work), work)
            for host, paths in wanted.items()
        ]
    first = found[0]
    for other in found[1:]:
        _keep_common(first.inventory, other.inventory)
        first.problems += other.problems
    return first


def _expand_wildcards(source: Source, paths: Sequence[str] | dict[str, None], work: Work) -> Iterator[str]:
    """Yield each path, and instead of a path with a wildcard, the existing repositories that match it."""
    for path in paths:
        before, matched, _ = path.partition(MATCHED)
        if not matched:
            yield path
            continue
        for name in source.repositories(before, work):
            if isinstance(name, str) and can_match(name, path):
                yield name


def _keep_common(one: Inventory, other: Inventory) -> None:
    """Remove all content from an inventory that another one lacks, because all targets must have the whole base."""
    one.manifests = {digest: what for digest, what in one.manifests.items() if digest in other.manifests}
    one.blobs = {digest: size for digest, size in one.blobs.items() if digest in other.blobs}
    for contents in one.repositories.values():
        contents.tags = {tag: digest for tag, digest in contents.tags.items() if digest in one.manifests}
        contents.roots &= one.manifests.keys()
        contents.platforms = {root: what for root, what in contents.platforms.items() if root in one.manifests}
        contents.manifests &= one.manifests.keys()
        contents.blobs &= one.blobs.keys()


# ---- reports


def _inventory_from_report(path: Path) -> Inventory:
    """Return an inventory of the images that a report lists as present on the targets.

    The inventory contains only root manifests, because a target that has a root manifest also has all objects to which
    it refers. Raises ConfigError if the file is not a report."""
    data = path.read_bytes()
    document = strictjson.parse(data, what=str(path), code="bundle_invalid", fold=False, nodes=MAX_NODES)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(document, dict) or document.get("schema") != 1 or not isinstance(images, list):
        raise ConfigError(f"{path} is not a report that mirror wrote", hint="use the file report.json of an import")
    totals = document.get("totals")
    counts = totals.get("images") if isinstance(totals, dict) else None
    if isinstance(counts, dict) and sum(one for one in counts.values() if isinstance(one, int)) > len(images):
        hint = "set `report: all` in the configuration, and run the import again"
        raise ConfigError(f"{path} does not list the images that were up to date", hint=hint)
    found = Inventory()
    for image in images:
        if isinstance(image, dict) and image.get("result") in _PRESENT_RESULTS and isinstance(image.get("digest"), str):
            _add_image(found, str(image.get("target")), Digest.parse(image["digest"]))
    found.normalize()
    return found


def _add_image(found: Inventory, target: str, digest: Digest) -> None:
    """Add the image of a report entry to an inventory. target: the entry's `target`, such as `host/repo:tag`."""
    name, reference = target.rsplit("@", 1) if "@" in target else target.rsplit(":", 1)
    on_disk = name.startswith(("/", "oci:", "-:"))
    repository = name.rpartition(":")[2] if on_disk else name.partition("/")[2]
    if not is_path(repository):
        return
    contents = found.repositories.setdefault(repository, RepositoryContents())
    contents.manifests.add(digest)
    found.manifests.setdefault(digest, ManifestInfo("", None))
    if is_tag(reference):
        contents.tags[reference] = digest
    else:
        contents.roots.add(digest)
