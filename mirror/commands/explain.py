"""`mirror explain`: prints which rule selects a reference, and what a sync would do with it and why."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from mirror.commands.options import Options
from mirror.commands.read_only import open_for_reading
from mirror.config import Config
from mirror.errors import FAILED, OK, ConfigError, MirrorError, printable, worst_exit_code
from mirror.oci.reference import Repository
from mirror.output.console import print_lines
from mirror.selection.locations import (
    MATCHED,
    BundleLocation,
    LayoutLocation,
    Location,
    RegistryLocation,
    parse_source,
)
from mirror.selection.repository_rules import can_match
from mirror.store import Version
from mirror.sync.explained_subjects import Subject
from mirror.sync.explanation import MirrorExplanation, TargetExplanation, explain_subjects
from mirror.sync.plan_model import MirrorEntry, PlanReceiver, RepositoryFilter, TargetEntry, source_digest
from mirror.sync.planner import Planner
from mirror.sync.write_conflicts import find_possible_conflicts
from mirror.util.shell_commands import insert_path
from mirror.util.structs import replace

_COUNTED = {"copy": "to copy", "skip": "up to date", "conflict": "in conflict", "fail": "failed"}
_VERBS = {
    "copy": "copy the image",
    "skip": "do nothing",
    "none": "do nothing",
    "conflict": "report a conflict",
    "fail": "fail",
}


def explain(options: Options, reference: str, *, as_json: bool) -> int:
    """Print what a sync would do with a reference or repository, and why. Return the exit code.

    The reference may be one of a source or of a target. Only the hosts of its mirrors are contacted, and nothing is
    written. Raises LocalError, and ConfigError if no mirror has the reference."""
    location = _parse_reference(reference)
    explanations: list[MirrorExplanation] = []
    with open_for_reading(options) as (context, state):
        config = context.config
        subjects = _find_subjects(context.entries, location, config)
        if not subjects:
            raise _unknown_reference(context.entries, reference, config)

        async def run() -> None:
            """Plan the mirrors that have the reference."""
            entries = _entries_to_plan(context.entries, subjects)
            reader = context.image_reader(state)

            def make_planner(receiver: PlanReceiver, only: RepositoryFilter) -> Planner:
                """Create a planner for the mirrors that have the reference."""
                return context.planner(state, receiver, reader, only=only)

            explanations.extend(await explain_subjects(context.calls, entries, subjects, make_planner, reader))

        stopped = context.run_until_signal(run())
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    lines = _json_lines(explanations, reference, config) if as_json else _text_lines(explanations, config)
    complete = all(explanation.is_complete for explanation in explanations)
    return worst_exit_code({print_lines(lines), OK if complete else FAILED})


# ---- the reference


def _parse_reference(text: str) -> RegistryLocation | LayoutLocation | BundleLocation:
    """Parse the argument REFERENCE. Raises ConfigError if it is invalid or contains a wildcard."""
    location: Location = parse_source(text)
    if isinstance(location, RegistryLocation | LayoutLocation | BundleLocation) and not location.wildcard:
        return location
    hint = "specify HOST/REPOSITORY:TAG or HOST/REPOSITORY of a source or a target"
    raise ConfigError(f"{printable(text, 80)} does not name exactly one repository", hint=hint)


def _find_subjects(
    entries: Sequence[MirrorEntry], location: RegistryLocation | LayoutLocation | BundleLocation, config: Config
) -> list[Subject]:
    """Return the subjects to explain: one for each mirror whose source or target is the repository at `location`."""
    named = _repository(location, config)
    identifier = location.tag or location.digest
    subjects = []
    for entry in entries:
        if entry.source.host == named.host and entry.has_repository(named.path):
            subjects.append(_make_subject(entry, named.path, identifier))
            continue
        for target in entry.targets:
            path = _source_path(entry, target.repository, named)
            source_tag = _source_identifier(entry, target, identifier)
            if path is not None and (source_tag is not None or identifier is None):
                subjects.append(_make_subject(replace(entry, targets=(target,)), path, source_tag))
    return subjects


def _source_identifier(entry: MirrorEntry, target: TargetEntry, identifier: str | None) -> str | None:
    """Return the tag or digest at the source that a mirror copies to `identifier` on a target, or None."""
    if identifier is None or not target.tags.is_fixed:
        return identifier if identifier is None or ":" in identifier else target.tags.source_tag(identifier)
    names = entry.rules.literal or (entry.rules.digest,)
    return names[0] if identifier == target.tags.before else None


def _make_subject(entry: MirrorEntry, path: str, identifier: str | None) -> Subject:
    """Return the subject of an explanation for a source repository of a mirror. path: the repository."""
    if not entry.wildcard:
        return Subject(entry, identifier)
    rule = entry.repository_rules.rejecting_rule(path.removeprefix(entry.prefix))
    return Subject(entry.expand_wildcard(path), identifier, rule)


def _source_path(entry: MirrorEntry, template: Repository, named: Repository) -> str | None:
    """Return the path of the source repository that a mirror copies to the target repository `named`.

    Return None if `template`, the target in the mirror, does not match `named`."""
    if template.host != named.host or not can_match(named.path, template.path):
        return None
    if not entry.wildcard:
        return entry.repository
    before, _, after = template.path.partition(MATCHED)
    matched = named.path[len(before) : len(named.path) - len(after)]
    return f"{entry.repository}/{matched}" if entry.repository else matched


def _repository(location: RegistryLocation | LayoutLocation | BundleLocation, config: Config) -> Repository:
    """Return the repository at a location, named as in mirror entries. A relative path on disk is resolved."""
    if isinstance(location, LayoutLocation):
        return Repository(f"oci:{Path(location.directory).expanduser().resolve()}", location.repository)
    if isinstance(location, BundleLocation):
        return Repository(str(Path(location.file).expanduser().resolve()), location.repository)
    host, _, port = location.repository.host.rpartition(":")
    default = "80" if config.settings_for(host).plain_http else "443"
    return replace(location.repository, host=host) if host and port == default else location.repository


def _unknown_reference(entries: Sequence[MirrorEntry], reference: str, config: Config) -> ConfigError:
    """Return the error for a reference that no mirror has. The hint names the most similar source or target."""
    names = [entry.name for entry in entries]
    names += [str(target.repository) for entry in entries for target in entry.targets]
    close = difflib.get_close_matches(reference, names, n=1, cutoff=0.0)
    hint = (
        f"the most similar source or target is {printable(close[0], 120)}"
        if close
        else "the configuration contains no mirrors"
    )
    return ConfigError(f"no mirror in {config.path} has the source or target {printable(reference, 120)}", hint=hint)


def _entries_to_plan(entries: Sequence[MirrorEntry], subjects: Sequence[Subject]) -> list[MirrorEntry]:
    """Return the mirror entries to plan: those of the subjects, and those that may conflict with them."""
    own = {subject.entry.number for subject in subjects}
    possible = find_possible_conflicts(entries)
    if own & {entry.number for entry in possible}:
        own |= {entry.number for entry in possible}
    return [entry for entry in entries if entry.number in own]


# ---- output


def _text_lines(explanations: Sequence[MirrorExplanation], config: Config) -> list[str]:
    """Return the lines that `mirror explain` prints without `--json`."""
    lines: list[str] = []
    for found in explanations:
        mirror = config.mirrors[found.number]
        lines += ["" for _ in lines[:1]]
        lines.append(f"{found.source}: {mirror.position.file}:{mirror.position.line} ({mirror.path})")
        chosen = {True: "selected", False: "not selected", None: "could not be determined"}[found.selected]
        lines.append(f"  selection: {chosen}: {found.reason}")
        lines += [f"    {count} left out by {printable(rule, 80)}" for rule, count in _list_rejected(found)]
        if found.found is not None:
            lines.append(f"  source:    {_describe_lookup(found.found)}")
        for target in found.targets:
            lines += _target_lines(target)
    return [insert_path(line, config.path) for line in lines]


def _list_rejected(found: MirrorExplanation) -> list[tuple[str, int]]:
    """Return each rule that leaves out tags of a repository, with the number of these tags.

    The list is empty if the explanation is about one reference."""
    return sorted(found.rejected.items()) if found.found is None else []


def _target_lines(target: TargetExplanation) -> list[str]:
    """Return the lines that explain one target."""
    if target.found is None:
        counts = ", ".join(
            f"{target.counts[action]} {text}" for action, text in _COUNTED.items() if target.counts[action]
        )
        return [f"  target:    {target.name}: {counts or 'nothing to copy'}"]
    found = _describe_lookup(target.found)
    reason = " for this reason" if target.reason == found else f": {target.reason}"
    return [
        f"  target:    {found if target.name in found else f'{target.name}: {found}'}",
        f"    a sync would {_VERBS[target.action]}{reason}",
    ]


def _describe_lookup(found: Version | MirrorError) -> str:
    """Describe the result of looking up a reference: the digest of its image, or an error."""
    if isinstance(found, MirrorError):
        return str(found)
    digest = source_digest(found)
    if digest is None:
        return f"an image that is converted to {found.digest or 'an image whose digest is not known yet'}"
    return f"{digest} (targets get {found.digest})" if found.digest not in (digest, None) else digest


def _json_lines(explanations: Sequence[MirrorExplanation], reference: str, config: Config) -> list[str]:
    """Return the lines that `explain --json` prints (docs/operations.md, "Explaining a reference")."""
    mirrors: list[dict[str, object]] = []
    for found in explanations:
        mirror = config.mirrors[found.number]
        fields: dict[str, object] = {
            "mirror": mirror.path,
            "file": mirror.position.file,
            "line": mirror.position.line,
            "source": found.source,
            "selected": found.selected,
            "rule": found.rule,
            "reason": insert_path(found.reason, config.path),
        }
        fields |= {"rejected": dict(found.rejected)} if found.found is None else _lookup_fields(found.found, config)
        mirrors.append(fields | {"targets": [_target_fields(target, config) for target in found.targets]})
    return json.dumps({"schema": 1, "reference": reference, "mirrors": mirrors}, indent=2).splitlines()


def _target_fields(target: TargetExplanation, config: Config) -> dict[str, object]:
    """Return the JSON object that explains one target. config: for the commands in hints."""
    if target.found is None:
        return {"target": target.name, "actions": dict(target.counts)}
    return {
        "target": target.name,
        **_lookup_fields(target.found, config),
        "action": target.action,
        "reason": insert_path(target.reason, config.path),
    }


def _lookup_fields(found: Version | MirrorError, config: Config) -> dict[str, object]:
    """Return the JSON fields `digest` and `error` for a lookup. One of them is null."""
    if isinstance(found, MirrorError):
        return {"digest": None, "error": {"code": found.code, "message": insert_path(str(found), config.path)}}
    return {"digest": source_digest(found), "error": None}
