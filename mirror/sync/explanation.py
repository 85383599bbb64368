"""Explains what a sync would do with one repository or reference, and why. Read-only.

The explanation combines the planner's result for this reference with the digests to which the reference refers now at
the source and on each target. `mirror explain` prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mirror.errors import MirrorError, NotFound, OtherPlatform, printable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.rule_descriptions import RuleDescription, describe_rule
from mirror.selection.tag_rules import SelectionSummary
from mirror.store import Source, Version
from mirror.sync.copy_preview import refine_plan_entry
from mirror.sync.explained_subjects import Subject, SubjectFilter
from mirror.sync.image_reader import ImageReader
from mirror.sync.plan_model import (
    Action,
    MirrorEntry,
    PlanEntry,
    PlanReceiver,
    RepositoryFilter,
    TargetEntry,
    reference_suffix,
)
from mirror.sync.planner import Planner
from mirror.sync.planner_queries import resolve_all
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.structs import Struct, field

_CONFLICTS = ("tag_immutable", "target_conflict")  # codes of errors that are reported as conflicts
# Codes of errors that are valid results of an explanation.
_DETERMINED = (*_CONFLICTS, "not_found", "not_signed", "manifest_invalid", "nothing_selected", "tag_count")
# The names of rules that need only the name of a tag, which `describe_rule` describes.
_RULES_FOR_NAMES = ("include", "exclude", "semver", "newest (no version)", "newest (attachment)")


class TargetExplanation(Struct):
    """The explanation of a reference or repository for one target: the action of a sync, and the reason.

    name: the reference or repository on the target.
    found: the version to which the reference refers on the target now, or the error of the lookup; None for a
    repository.
    action: `copy`, `skip`, `conflict`, `fail` or, if the reference is not selected, `none`. For a repository, `action`
    is empty, and `counts` has the number of references with each action."""

    name: str
    found: Version | MirrorError | None = None
    action: str = ""
    reason: str = ""
    counts: Counter[str] = field(default_factory=Counter)


class MirrorExplanation(Struct):
    """The explanation of a reference or repository for one mirror of the configuration.

    number: the index of the mirror in the configuration. source: the reference or repository at the source.
    selected: whether the mirror selects the reference or repository; None if this could not be determined.
    rule, reason: the rule that selects or excludes the reference, as named in the configuration, and the reason, as a
    clause.
    found: the version to which the reference refers at the source now, or the error of the lookup; None for a
    repository.
    rejected: for a repository, the number of tags that each rule leaves out. failures: the errors that prevented the
    mirror from being planned."""

    number: int
    source: str
    selected: bool | None = None
    rule: str = ""
    reason: str = ""
    found: Version | MirrorError | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    failures: list[MirrorError] = field(default_factory=list)
    targets: list[TargetExplanation] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no part of the explanation failed. A missing tag and a conflict are valid results."""
        lookups = [self.found, *(target.found for target in self.targets)]
        errors = [*self.failures, *(found for found in lookups if isinstance(found, MirrorError))]
        return all(error.code in _DETERMINED for error in errors)


class PlanCollector:
    """Collects the part of a plan that concerns the subjects of an explanation. Implements PlanReceiver."""

    def __init__(self) -> None:
        self.plan_entries: list[PlanEntry] = []
        self.failures: list[tuple[MirrorEntry, MirrorError]] = []
        self.selections: dict[tuple[int, str], SelectionSummary] = {}

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Collect a plan entry."""
        self.plan_entries.append(plan_entry)

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Collect the error of a mirror that cannot be planned."""
        self.failures.append((entry, error))

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Do nothing, because the names of subjects are valid."""

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing, because the rule for the repository of a subject is known without the catalog."""

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing, because an explanation does not write to the state."""

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Collect the numbers of references that a mirror selects, and that each rule leaves out."""
        self.selections[entry.number, entry.repository] = selection


async def explain_subjects(
    calls: Calls,
    entries: Sequence[MirrorEntry],
    subjects: Sequence[Subject],
    make_planner: Callable[[PlanReceiver, RepositoryFilter], Planner],
    reader: ImageReader,
) -> list[MirrorExplanation]:
    """Plan the mirrors, and return an explanation for each subject.

    entries: the mirrors to plan, with wildcards not expanded. reader: reads the images that a sync would copy."""
    collector = PlanCollector()
    await make_planner(collector, SubjectFilter(subjects)).plan_all(entries)
    return await run_group(_explain(calls, collector, reader, subject) for subject in subjects)


async def _explain(calls: Calls, collector: PlanCollector, reader: ImageReader, subject: Subject) -> MirrorExplanation:
    """Return the explanation of one subject. collector: contains the plan."""
    entry, identifier = subject.entry, subject.identifier
    found = MirrorExplanation(entry.number, subject.source)
    found.failures = [
        error
        for failed, error in collector.failures
        if failed.number == entry.number and (failed.wildcard or failed.repository == entry.repository)
    ]
    selection = collector.selections.get((entry.number, entry.repository))
    count, found.rejected = (selection.count, selection.rejected) if selection is not None else (0, {})
    plans = [
        one
        for one in collector.plan_entries
        if one.reference.entry.number == entry.number and one.reference.entry.repository == entry.repository
    ]
    if identifier is None:
        _explain_repository(found, subject, plans, count, is_listed=selection is not None)
        return found
    plans = await run_group(refine_plan_entry(reader, one) for one in plans if one.reference.name == subject.source)
    found.found, *copies = await run_group(
        [
            _look_up(calls, entry.source, entry.repository, identifier, plans),
            *(
                _look_up(calls, target.store, target.repository.path, target.tags.apply(identifier))
                for target in entry.targets
            ),
        ]
    )
    if selection is None and (subject.repository_rule is not None or not found.failures):
        _explain_unlisted(found, subject)
    else:
        _explain_selection(found, describe_rule(entry.rules, identifier), is_planned=bool(plans))
    is_attached = entry.attachments is not None and is_attachment_tag(identifier)
    for target, copy in zip(entry.targets, copies, strict=True):
        plan = next((one for one in plans if one.target == target), None)
        found.targets.append(_explain_target(found, target, identifier, copy, plan, is_attached=is_attached))
    return found


async def _look_up(
    calls: Calls, store: Source, repository: str, identifier: str, plans: Sequence[PlanEntry] = ()
) -> Version | MirrorError:
    """Look up a tag or digest in a store, unless `plans` already contains the result. Return a version or an error."""
    for plan in plans:
        if plan.reference.identifier == identifier and plan.reference.version is not None:
            return plan.reference.version
    (version,) = await calls.call_host(store.host, partial(resolve_all, store, repository, [identifier]))
    return version


# ---- selection


def _explain_selection(found: MirrorExplanation, by_name: RuleDescription, *, is_planned: bool) -> None:
    """Add to an explanation whether the rules select a tag or digest, and why.

    by_name: the result of the rules that need only the name. is_planned: whether the planner has selected the
    reference."""
    found.selected, found.rule, found.reason = is_planned, by_name.rule, by_name.text
    if is_planned or not by_name.selects:
        return
    found.rule = "source"
    if found.failures:
        found.selected, found.rule, found.reason = None, "", str(found.failures[0])
    elif isinstance(found.found, NotFound):
        found.reason = "the source does not have it"
    elif others := sorted(rule for rule in found.rejected if not rule.startswith(_RULES_FOR_NAMES)):
        found.rule = " or ".join(others)
        found.reason = f"the rule {' or '.join(f'`{printable(rule, 80)}`' for rule in others)} leaves it out"
    else:
        found.reason = "the source has the tag, but does not list it"


def _explain_unlisted(found: MirrorExplanation, subject: Subject) -> None:
    """Add to an explanation why a wildcard does not select the repository of a subject."""
    found.selected = False
    if subject.repository_rule is not None:
        found.rule = f"repositories: {subject.repository_rule}"
        found.reason = f"the rule `{printable(found.rule, 80)}` leaves out {subject.entry.name}"
    elif found.failures:
        found.selected, found.reason = None, str(found.failures[0])
    else:
        found.rule, found.reason = "source", f"the catalog does not contain {subject.entry.name}"


def _explain_repository(
    found: MirrorExplanation, subject: Subject, plans: Sequence[PlanEntry], count: int, *, is_listed: bool
) -> None:
    """Add to an explanation the number of selected references in a repository, and the actions of a sync."""
    if is_listed:
        found.selected, found.reason = True, f"{count} {'tag' if count == 1 else 'tags'}"
    else:
        _explain_unlisted(found, subject)
    for target in subject.entry.targets:
        actions = [_action(plan) for plan in plans if plan.target.repository == target.repository]
        found.targets.append(TargetExplanation(str(target.repository), counts=Counter(actions)))
        failures = (_failure(plan) for plan in plans if plan.target.repository == target.repository)
        found.failures += [error for error in failures if error is not None]


# ---- actions


def _failure(plan: PlanEntry) -> MirrorError | None:
    """Return the error of a plan entry, or None. An image that is skipped because of its platform has not failed."""
    return None if isinstance(plan.error, OtherPlatform) else plan.error


def _action(plan: PlanEntry) -> str:
    """Return the action of a plan entry as a word: `copy`, `skip`, `conflict` or `fail`."""
    if isinstance(plan.error, OtherPlatform):
        return "skip"
    if plan.error is not None:
        return "conflict" if plan.error.code in _CONFLICTS else "fail"
    return plan.action.value


def _explain_target(
    found: MirrorExplanation,
    target: TargetEntry,
    identifier: str,
    copy: Version | MirrorError,
    plan: PlanEntry | None,
    *,
    is_attached: bool,
) -> TargetExplanation:
    """Explain the action of a sync for a tag on one target. copy: the result of looking up the tag on the target.

    is_attached: whether the tag belongs to an attachment, and the mirror copies attachments with their images."""
    name = str(target.repository) + reference_suffix(target.tags.apply(identifier))
    if plan is not None:
        failure = _failure(plan)
        if failure is not None and failure.code not in _CONFLICTS:
            found.failures.append(failure)
        return TargetExplanation(plan.name, copy, _action(plan), _describe_action(plan, found.found, copy))
    error = next(iter(found.failures), None)
    if error is not None and found.selected is not False:
        action = "conflict" if error.code in _CONFLICTS else "fail"
        return TargetExplanation(name, copy, action, str(error))
    reason = "it is not selected; a sync neither changes nor deletes such tags"
    if is_attached:
        reason = "it is not selected; a sync copies an attachment only with the image to which it belongs"
    return TargetExplanation(name, copy, "none", reason)


def _describe_action(plan: PlanEntry, at_source: Version | MirrorError | None, on_target: Version | MirrorError) -> str:
    """Return the reason for the action of a plan entry. at_source, on_target: the results of looking up the tag."""
    source = at_source.digest if isinstance(at_source, Version) else None
    copy = on_target.digest if isinstance(on_target, Version) else None
    if plan.error is not None:
        return str(plan.error)
    if plan.action is Action.SKIP:
        return _describe_skip(plan, source, copy)
    version = plan.reference.version
    is_unknown = isinstance(version, Version) and version.is_unknown
    is_converted = isinstance(version, Version) and version.transform is not None
    reasons = (
        (plan.incomplete, "the target has the index, but not all of its platforms that are selected now"),
        (
            is_unknown and not is_converted,
            "only some platforms are copied; the target may lack the result",
        ),
        (is_unknown, "the image must be converted; the result is copied if the target does not have it"),
        (plan.damaged, "the target has the tag, but cannot return its manifest"),
        (isinstance(on_target, NotFound), "the target does not have it"),
        (copy is not None and copy == source, "the state says that the target has another digest"),
    )
    default = "the digests differ: the tag has moved at the source, or was changed on the target"
    return next((text for applies, text in reasons if applies), default)


def _describe_skip(plan: PlanEntry, source: Digest | None, copy: Digest | None) -> str:
    """Return the reason why an image is up to date. source, copy: the digests at the source and on the target now."""
    if copy is not None and copy == plan.old_digest and source in (None, copy):
        return "the target has the image already"
    if plan.reference.entry.rules.is_immutable(plan.tag) and plan.reference.version is None:
        why = "the tag is immutable, and the state says that it was equal at the source and on the target"
    else:
        why = "the target is exclusive, and the state says that it has the image"
    return f"{why}, although the digests differ now. Run `mirror sync --deep CONFIG` to compare them again"
