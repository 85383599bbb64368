"""`mirror prune --plan`: finds the tags on the targets that are no longer selected, and writes a plan."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from mirror.commands.options import Options
from mirror.commands.output_files import resolve_output
from mirror.commands.prune_lines import plan_lines
from mirror.commands.read_only import open_with_shards
from mirror.commands.session import RunContext
from mirror.config import Config
from mirror.errors import Cancelled, ConfigError, MirrorError, worst_exit_code
from mirror.output.console import print_lines
from mirror.selection.locations import is_bundle
from mirror.state.hints import State
from mirror.state.ownership import OwnershipRecords
from mirror.sync.planner import Planner
from mirror.sync.prune_plan import PrunePlan, RepositoryPlan
from mirror.sync.prune_planner import PrunePlanner, PruneSurvey, plan_repository
from mirror.sync.prune_selection import PruneSelection
from mirror.sync.unrecorded_tags import UnrecordedTagCounter
from mirror.transfer.tasks import gather_results
from mirror.util.files import atomic_write
from mirror.util.structs import replace

MAX_DELETE = 10.0  # the default of `--max-delete`: percent of the tags of a repository


def plan(options: Options, output: Path) -> int:
    """Write the plan of a prune to a file, print it, and return the exit code. Deletes nothing.

    Raises ConfigError, LocalError."""
    found: list[PrunePlan] = []
    with open_with_shards(options, share_memory=True) as (context, states):
        config = context.config
        check_targets(config)
        if str(output) == "-":
            raise ConfigError("`--plan -` does not name a file", hint="specify a path; the plan cannot be printed")
        path = resolve_output(output, config, name="plan", remedy="for the plan")
        records = OwnershipRecords(states, config.path)
        has_records = bool(records.repositories())

        async def run() -> None:
            """Examine the sources and the targets, and make the plan."""
            counter = UnrecordedTagCounter(records)
            survey = await find_deletable_tags(context, states[0], records, counter=counter)
            found.append(replace(await _make_plan(config, survey), unrecorded=counter.by_target(context.entries)))

        stopped = context.run_until_signal(run())
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    (made,) = found
    with atomic_write(path, mode=0o644) as out:
        out.write(made.render().encode())
    written = print_lines(plan_lines(made, output, limit=MAX_DELETE, has_records=has_records))
    return worst_exit_code({written, *(error.exit_code for error in made.refused.values())})


async def _make_plan(config: Config, survey: PruneSurvey) -> PrunePlan:
    """Create the plan of a prune. survey: the tags that may be deleted, and the tags that are kept, with reasons."""
    refused, kept, repositories = dict(survey.refused), dict(survey.kept), list[RepositoryPlan]()
    prunable = [found for found in survey.repositories if found.tags]
    for found, result in zip(prunable, await gather_results(map(plan_repository, prunable)), strict=True):
        if isinstance(result, Cancelled):
            raise result
        if isinstance(result, MirrorError):
            refused[found.name] = result
        else:
            repository, staying = result
            repositories.append(repository)
            kept |= staying
    now = datetime.now(UTC)
    return PrunePlan(config.path, config.text_hash, now, repositories, kept, refused)


def check_targets(config: Config) -> None:
    """Raise ConfigError if all targets are bundles."""
    if all(is_bundle(target.host) for mirror in config.mirrors for target in mirror.targets):
        hint = "export the bundle again: a new bundle contains only what is selected"
        raise ConfigError("nothing can be deleted from a bundle, and all targets are bundles", hint=hint)


async def find_deletable_tags(
    context: RunContext,
    state: State,
    records: OwnershipRecords,
    *,
    also: Collection[str] = (),
    counter: UnrecordedTagCounter | None = None,
) -> PruneSurvey:
    """List the tags of the sources and targets, and determine which tags on targets may be deleted.

    also: target repositories to examine even if all their tags are selected. counter: counts unrecorded tags."""
    selection = PruneSelection()
    planner = Planner(
        context.calls,
        state,
        selection,
        only=context.only,
        parallel=context.stores.parallel(),
        manifests=context.manifests,
        use_hints=False,
        receive_references=selection.receive,
        resolve_references=False,
        keep_tags=selection.keep_tags,
    )
    await planner.plan_all(context.entries)
    return await PrunePlanner(context.calls, records, selection).find(also, counter)
