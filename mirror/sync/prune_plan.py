"""The plan of a prune: the tags to delete from the targets, and the attachments that are deleted with them.

`mirror prune CONFIG --plan FILE` writes the plan, and `--apply FILE` reads it. The format is JSON (docs/operations.md,
"Removing images"). A plan only limits the deletions, because `--apply` plans again. Therefore, only the references and
digests in the file are read, and the operator may remove entries from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mirror.errors import ConfigError, MirrorError, Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.strictjson import Object, Value
from mirror.sync.unrecorded_tags import UnrecordedTags
from mirror.util.shell_commands import insert_path
from mirror.util.structs import Struct

FORMAT = 1
MAX_BYTES = 64 << 20
MAX_NODES = 4_000_000
MAX_AGE = timedelta(hours=24)
_MAX_CLOCK_ERROR = timedelta(minutes=5)
_PLAN_AGAIN = "create a new plan with `mirror prune CONFIG --plan FILE`"


class PruneRefused(RemoteError):
    """The error for a tag or manifest that was not deleted, because it may still be needed or could not be checked."""

    code = "prune_refused"


class PlannedDeletion(Struct, frozen=True):
    """A tag that a prune deletes, or an attachment that it deletes after the last tag of the subject.

    name: the reference on the target, as `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST` for an attachment without a
    tag. reference: the tag or digest. source: the source repository. The other fields are only for tags of images.
    reason: why the tag is not selected. size: the size of the image in bytes, or None if it is unknown. shares_with:
    other tags that refer to the same manifest and are not deleted."""

    name: str
    reference: str
    digest: Digest
    source: str
    reason: str = ""
    size: int | None = None
    shares_with: tuple[str, ...] = ()


class RepositoryPlan(Struct, frozen=True):
    """The tags and attachments that a prune deletes from one target repository.

    owned: the number of tags that the configuration wrote and that nobody has changed since."""

    name: str
    owned: int
    tags: Sequence[PlannedDeletion]
    attachments: Sequence[PlannedDeletion] = ()

    @property
    def percent(self) -> float:
        """The percentage of the owned tags that are deleted."""
        return 100 * len(self.tags) / self.owned if self.owned else 0.0


class PrunePlan(Struct, frozen=True):
    """The plan of a prune: the tags and attachments to delete from all targets.

    config: the path of the configuration file. config_hash: the SHA-256 of the file.
    kept: tags that are not selected but are not deleted, each with the reason.
    refused: target repositories that could not be examined completely, each with the error. Nothing is deleted from
    them. unrecorded: the numbers of tags that no sync with this configuration wrote."""

    config: Path
    config_hash: str
    created: datetime
    repositories: Sequence[RepositoryPlan]
    kept: Mapping[str, str]
    refused: Mapping[str, MirrorError]
    unrecorded: Sequence[UnrecordedTags] = ()

    def render(self) -> str:
        """Return the plan as JSON, for the file that `--plan` writes."""
        document: Object = {
            "schema": FORMAT,
            "config": {"file": printable(self.config), "sha256": self.config_hash},
            "created": self.created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "repositories": [_repository_fields(repository) for repository in self.repositories],
            "kept": [{"name": name, "reason": reason} for name, reason in sorted(self.kept.items())],
            "refused": [
                {"repository": name, "code": error.code, "reason": insert_path(str(error), self.config)}
                for name, error in sorted(self.refused.items())
            ],
            "unrecorded_tags": [
                {"target": one.target, "repositories": one.repositories, "tags": one.tags} for one in self.unrecorded
            ],
        }
        return json.dumps(document, indent=2) + "\n"


def _repository_fields(repository: RepositoryPlan) -> Object:
    """Return the JSON object for one target repository."""
    return {
        "repository": repository.name,
        "owned": repository.owned,
        "tags": [
            {
                "name": one.name,
                "reference": one.reference,
                "digest": one.digest,
                "source": one.source,
                "reason": one.reason,
                "bytes": one.size,
                "shares_with": list(one.shares_with),
            }
            for one in repository.tags
        ],
        "attachments": [
            {"name": one.name, "reference": one.reference, "digest": one.digest, "source": one.source}
            for one in repository.attachments
        ],
    }


# ---- reading


class AllowedDeletions(Struct, frozen=True):
    """The deletions that a plan allows: for each target repository, the references with the digests of manifests."""

    created: datetime
    repositories: Mapping[str, Mapping[str, Digest]]

    def allows(self, repository: str, reference: str, digest: Digest) -> bool:
        """Return whether the plan contains a reference in a repository with a given digest."""
        return self.repositories.get(repository, {}).get(reference) == digest


def read_prune_plan(path: Path, *, config_hash: str, now: datetime) -> AllowedDeletions:
    """Read the plan of a prune. Raises ConfigError if it is invalid or too old, or if the configuration has changed."""
    what = printable(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the plan {what}: {error.strerror}", hint=_PLAN_AGAIN) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{what} has more than {MAX_BYTES} bytes, the maximum size of a plan", hint=_PLAN_AGAIN)
    try:
        document = strictjson.parse(data, what=what, fold=False, nodes=MAX_NODES)
        allowed, made_for = _parse_document(document, what)
    except Refused as error:
        raise ConfigError(error.what, hint=_PLAN_AGAIN) from error
    if made_for != config_hash:
        raise _unusable_plan(f"{what} was made for another configuration, or the configuration was changed since then")
    if allowed.created > now + _MAX_CLOCK_ERROR:
        raise _unusable_plan(f"{what} was made in the future, at {allowed.created:%Y-%m-%d %H:%M} UTC; check the clock")
    if now - allowed.created > MAX_AGE:
        hours = MAX_AGE.total_seconds() / 3600
        raise _unusable_plan(f"{what} was made at {allowed.created:%Y-%m-%d %H:%M} UTC, more than {hours:g} hours ago")
    return allowed


def _unusable_plan(what: str) -> ConfigError:
    """Return the error for a plan that must not be applied."""
    return ConfigError(what, hint=_PLAN_AGAIN, code="prune_refused")


def _parse_document(document: Value, what: str) -> tuple[AllowedDeletions, str]:
    """Parse the JSON document of a plan. Return the allowed deletions, and the hash of the plan's configuration.

    Raises ConfigError and Refused if the document is not valid."""
    top = _object(document, what)
    if type(top.get("schema")) is not int:
        raise _invalid(what)
    if top["schema"] != FORMAT:
        raise ConfigError(
            f"{what} has format {top['schema']}, but this version reads format {FORMAT}", hint=_PLAN_AGAIN
        )
    config = _object(top.get("config"), what)
    try:
        created = datetime.fromisoformat(_text(top.get("created"), what))
        is_local = created.tzinfo is None
        created = created.astimezone(UTC)
    except (ValueError, OverflowError):  # a time zone can move a time beyond the years that a datetime can have
        raise _invalid(what) from None
    if is_local:
        raise _invalid(what)
    repositories = {
        _text(repository.get("repository"), what): {
            _text(entry.get("reference"), what): Digest.parse(entry.get("digest"))
            for part in ("tags", "attachments")
            for entry in _objects(repository.get(part), what)
        }
        for repository in _objects(top.get("repositories"), what)
    }
    return AllowedDeletions(created, repositories), _text(config.get("sha256"), what)


def _object(value: Value, what: str) -> Object:
    """Return a value of the plan if it is a JSON object. Otherwise, raise ConfigError."""
    if not isinstance(value, dict):
        raise _invalid(what)
    return value


def _objects(value: Value, what: str) -> list[Object]:
    """Return a value of the plan if it is a list of JSON objects. Otherwise, raise ConfigError."""
    if not isinstance(value, list):
        raise _invalid(what)
    return [_object(one, what) for one in value]


def _text(value: Value, what: str) -> str:
    """Return a value of the plan if it is a string. Otherwise, raise ConfigError."""
    if not isinstance(value, str):
        raise _invalid(what)
    return value


def _invalid(what: str) -> ConfigError:
    """Return the error for a file that is not a valid plan. what: the name of the file."""
    return ConfigError(f"{what} is not a valid plan of `mirror prune`", hint=_PLAN_AGAIN)
