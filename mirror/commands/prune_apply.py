"""`mirror prune --apply`: deletes the tags of a plan from the targets, and writes a report."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mirror.commands.options import Options, ReferenceFilter
from mirror.commands.prune import check_targets, find_deletable_tags
from mirror.commands.prune_lines import apply_lines
from mirror.commands.read_only import log_config_warnings, log_state_warning, new_run_id, run_cost
from mirror.commands.run_log import command_completer, open_run_log
from mirror.commands.session import RunContext, close_in_time, open_run, seconds_left
from mirror.config import Config, load, state_directory
from mirror.errors import OK, SIGNALLED, Cancelled, MirrorError, worst_exit_code
from mirror.oci.digest import Digest
from mirror.output.console import Console, print_lines
from mirror.output.progress import Progress
from mirror.output.progress_display import show_progress
from mirror.output.redaction import Redactor
from mirror.output.report import Failure, ImageEntry, Report, Result, RunCost
from mirror.state.hints import State
from mirror.state.ownership import OwnershipRecords
from mirror.state.shard_states import SharedV2Memory, shard_folders
from mirror.sync.plan_model import reference_suffix
from mirror.sync.prune_plan import (
    AllowedDeletions,
    PlannedDeletion,
    PruneRefused,
    RepositoryPlan,
    read_prune_plan,
)
from mirror.sync.prune_planner import PrunableRepository, PruneSurvey
from mirror.sync.pruner import Outcome, Pruner, RepositoryTask
from mirror.transfer.tasks import run_group
from mirror.util.files import Lock, private_directory
from mirror.util.shell_commands import insert_path
from mirror.util.signals import InterruptibleSleep, Signals

_RESULTS: Mapping[Outcome, Result] = {"deleted": "deleted", "gone": "up-to-date", "kept": "kept", "failed": "failed"}

_log = logging.getLogger("mirror")


def apply(options: Options, file: Path, max_delete: float) -> int:
    """Delete those tags of a plan that may still be deleted, and return the exit code.

    file: the plan. max_delete: the limit, as a percentage of the copied tags of each repository. If one repository
    exceeds it, nothing is deleted. Raises ConfigError, LocalError, LockBusy."""
    config = load(options.config)
    check_targets(config)
    allowed = read_prune_plan(file, config_hash=config.text_hash, now=datetime.now(UTC))
    with Signals() as signals:
        try:
            with _lock_folders(config, signals) as folders:
                return _PruneRun(config, options, allowed, max_delete, folders, signals).run()
        except Cancelled:
            return SIGNALLED + (signals.number or 0)


@contextmanager
def _lock_folders(config: Config, signals: Signals) -> Iterator[list[Path]]:
    """Return a context manager that locks the state directory and the folders of all shards, and yields their paths.

    Raises LockBusy, LocalError."""
    directory = private_directory(state_directory(config))
    folders = [directory, *(private_directory(folder) for folder in shard_folders(directory))]
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(Lock(folder / "lock").acquire(0.0, InterruptibleSleep(signals)))
        yield folders


class _PruneRun:
    """One run of `mirror prune --apply`.

    folders: the state directory and the folders of shards, which the caller has locked."""

    def __init__(
        self,
        config: Config,
        options: Options,
        allowed: AllowedDeletions,
        max_delete: float,
        folders: list[Path],
        signals: Signals,
    ) -> None:
        self._config = config
        self._options = options
        self._allowed = allowed
        self._max_delete = max_delete
        self._folders = folders
        self._signals = signals
        self._console = Console()
        self._redactor = Redactor()
        self._outcomes: dict[str, Outcome] = {}  # by the name of the tag or attachment on the target
        self._problems: list[tuple[str, str]] = []  # names on the target, with the reasons
        self._codes = {OK}
        self._progress = Progress()
        self._report: Report

    def run(self) -> int:
        """Open the log and the report, delete the tags, print the summary, and return the exit code."""
        started, clock = datetime.now(UTC), time.monotonic()
        run = new_run_id()
        with ExitStack() as stack:
            logged = stack.enter_context(
                open_run_log(self._config, self._options, run, self._folders[0], self._console, self._redactor)
            )
            log_config_warnings(self._config)
            self._report = stack.enter_context(
                Report(
                    self._folders[0],
                    run=run,
                    started=started,
                    redact=self._redactor,
                    command="prune",
                    complete=command_completer(self._config.path.absolute(), self._options),
                )
            )
            _log.info(
                "prune_started", extra={"config": str(self._config.path), "config_sha256": self._config.text_hash}
            )
            code, cost, freed = self._delete_all(run, clock)
            logged.finish(seconds_left(self._signals))
            if code < SIGNALLED and logged.failure is not None:
                code = worst_exit_code({code, logged.failure.exit_code})
            self._report.finish(code, ended=datetime.now(UTC), cost=cost)
            _log.info("prune_ended", extra={"exit": code, "seconds": round(cost.seconds, 3)})
            print_lines(apply_lines(self._outcomes, self._problems, self._report.path, freed))
        return self._signals.exit_if_hung(code)

    def _delete_all(self, run: str, clock: float) -> tuple[int, RunCost, int]:
        """Open the state and the stores, and delete the tags. Return the exit code, the cost, and the bytes freed.

        run: the id of the run. clock: when the run started, on the monotonic clock."""
        with ExitStack() as stack:
            states = [stack.enter_context(State.open(folder, log_state_warning)) for folder in self._folders]
            stack.enter_context(show_progress(self._progress, self._console, self._options.progress_mode))
            arguments = (self._options, ReferenceFilter(None), self._redactor, self._signals, states[0], self._progress)
            memory = SharedV2Memory(states)
            with open_run(self._config, *arguments, run=run, writes=False, memory=memory) as context:
                records = OwnershipRecords(states, self._config.path)
                pruner = Pruner(context.calls, records, context.stores.registries, self._record)
                with ExitStack() as closing:
                    closing.callback(pruner.close)  # after the threads that delete have ended
                    closing.callback(close_in_time, context.calls.close, self._signals)
                    stopped = context.run_until_signal(self._find_and_delete(context, states[0], records, pruner))
            failures = [state.failure for state in states if state.failure is not None]
            self._codes.update(failure.exit_code for failure in failures)
        self._record_rest(stopped)
        code = worst_exit_code(self._codes) if stopped is None else stopped
        return code, run_cost(context.limits, clock), pruner.freed

    async def _find_and_delete(
        self, context: RunContext, state: State, records: OwnershipRecords, pruner: Pruner
    ) -> None:
        """Determine again which tags may be deleted, and delete those in the plan, within the limit `--max-delete`."""
        allowed = self._allowed.repositories
        survey = await find_deletable_tags(context, state, records, also=allowed)
        self._progress.start_deleting(sum(len(references) for references in allowed.values()))
        self._record_not_deletable(survey)
        tasks = [
            RepositoryTask(found, self._allowed_tags(found), allowed[found.name])
            for found in survey.repositories
            if found.name in allowed
        ]
        error = self._check_limit(tasks)
        if error is not None:
            for task in tasks:
                for one in task.tags:
                    self._record(one, "kept", error)
            return
        by_host: defaultdict[str, list[RepositoryTask]] = defaultdict(list)
        for task in tasks:
            by_host[task.found.content.store.host].append(task)
        await run_group(self._prune_host(pruner, host, part) for host, part in by_host.items())

    def _allowed_tags(self, found: PrunableRepository) -> list[PlannedDeletion]:
        """Return the tags of a repository that may be deleted now and that the plan contains."""
        return [one for one in found.tags if self._allowed.allows(found.name, one.reference, one.digest)]

    def _check_limit(self, tasks: Sequence[RepositoryTask]) -> PruneRefused | None:
        """Return an error if more tags of a repository would be deleted than `--max-delete` allows."""
        over = [
            f"{len(task.tags)} of {task.found.owned} tags of {task.found.name}"
            for task in tasks
            if RepositoryPlan(task.found.name, task.found.owned, task.tags).percent > self._max_delete
        ]
        if not over:
            return None
        more = f" and tags of {len(over) - 3} more repositories" if len(over) > 3 else ""
        what = f"the plan would delete {', '.join(over[:3])}{more}; the limit is {self._max_delete:g} %"
        return PruneRefused(what, hint="if this is correct, set a higher limit with `--max-delete PERCENT`")

    async def _prune_host(self, pruner: Pruner, host: str, tasks: list[RepositoryTask]) -> None:
        """Delete the tags on one target host. Record an error that concerns the whole host."""
        try:
            await pruner.prune_host(host, tasks)
        except Cancelled:
            raise
        except MirrorError as error:
            self._add_problem(host, error)

    def _record_not_deletable(self, survey: PruneSurvey) -> None:
        """Record the outcome for those tags of the plan that must not be deleted now or no longer exist."""
        found = {one.name: one for one in survey.repositories}
        for name, references in self._allowed.repositories.items():
            repository = found.get(name)
            deletable = {one.reference: one.digest for one in repository.tags} if repository is not None else {}
            for reference, digest in references.items():
                if deletable.get(reference) == digest:
                    continue
                item = PlannedDeletion(name + reference_suffix(reference), reference, digest, "")
                if ":" in reference or (repository is not None and repository.attachments.has(reference)):
                    continue  # an attachment: whether it is deleted depends on its subject
                if repository is not None and ":" not in reference and reference not in repository.content.tags:
                    self._record(item, "gone", None)
                    continue
                error = survey.refused.get(name)
                if error is None:
                    reason = survey.kept.get(item.name) or survey.kept.get(name)
                    error = PruneRefused(reason or _reason_to_keep(repository, reference))
                self._record(item, "kept", error)

    def _record_rest(self, stopped: int | None) -> None:
        """If a signal stopped the run, record all tags of the plan that have no outcome as skipped.

        stopped: the exit code for the signal; None without a signal."""
        if stopped is None:
            return
        for name, references in self._allowed.repositories.items():
            for reference, digest in references.items():
                full = name + reference_suffix(reference)
                if full not in self._outcomes:
                    error = Failure.from_error(self._signals.error())
                    self._report.add(ImageEntry("", full, "skipped", digest=digest, error=error))

    def _record(self, item: PlannedDeletion, outcome: Outcome, error: MirrorError | None) -> None:
        """Record the outcome for a tag or attachment in the report and in the log."""
        self._outcomes[item.name] = outcome
        self._progress.count_image(failed=outcome == "failed")
        failure = Failure.from_error(error) if error is not None else None
        entry = ImageEntry(item.source, item.name, _RESULTS[outcome], digest=item.digest, error=failure)
        self._report.add(entry)
        fields = {"target": item.name, "digest": item.digest}
        if error is None:
            text = (
                f"deleted {item.name}, digest {item.digest}"
                if outcome == "deleted"
                else f"{item.name} no longer existed"
            )
            _log.info("reference_deleted" if outcome == "deleted" else "reference_gone", extra=fields | {"text": text})
        else:
            self._add_problem(item.name, error, **fields)

    def _add_problem(self, name: str, error: MirrorError, **fields: str | Digest) -> None:
        """Log an error, and keep it for the summary and the exit code."""
        self._problems.append((name, self._redactor(insert_path(str(error), self._config.path))))
        self._codes.add(error.exit_code)
        text = f"{name}: {error}"
        _log.error("not_deleted", extra={**fields, "code": error.code, "status": error.status, "text": text})


def _reason_to_keep(repository: PrunableRepository | None, reference: str) -> str:
    """Return the reason why a tag of the plan is kept, if the survey contains no reason.

    repository: the result of examining its repository; None if it was not examined."""
    if repository is None or reference not in repository.written:
        return "the state has no record that a sync with this configuration copied the tag"
    if any(one.reference == reference for one in repository.tags):
        return "a sync has copied another image to the tag since the plan was made"
    return "the tag is selected again"
