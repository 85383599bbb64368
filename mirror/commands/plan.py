"""`mirror plan`: prints which images a sync would copy, without writing to targets."""

from __future__ import annotations

from functools import partial

from mirror.commands.options import Options
from mirror.commands.plan_json import plan_document
from mirror.commands.read_only import open_with_shards
from mirror.commands.summaries import drift_lines, plan_lines
from mirror.errors import CHANGES, OK, worst_exit_code
from mirror.output.console import print_lines
from mirror.state.ownership import OwnershipRecords
from mirror.sync.dry_run import DryRun
from mirror.sync.locked_selection import LockComparison, compare_lock
from mirror.sync.platform_reader import PlatformReader
from mirror.sync.report_entries import run_failure
from mirror.sync.unrecorded_tags import UnrecordedTagCounter
from mirror.transfer.tasks import run_group


def plan(options: Options) -> int:
    """Print which images a sync would copy, and return the exit code. Raises ConfigError, LocalError.

    With `--locked`, also print how the sources differ from the image lock."""
    comparisons: list[LockComparison] = []
    with open_with_shards(options, "planning", share_memory=False) as (context, states):
        state = states[0]
        counter = UnrecordedTagCounter(OwnershipRecords(states, context.config.path))
        context.check_no_partial_bundle(options)
        reader = context.image_reader(state)
        platforms, bases = PlatformReader(context.calls, context.manifests), context.bases(state, reader)
        dry_run = DryRun(platforms, bases, reader, context.progress, deep=options.deep)
        planner = context.planner(
            state,
            dry_run,
            reader,
            use_hints=not options.deep,
            reread_dates=options.deep,
            keep_target_tags=counter.count,
        )

        async def compare() -> None:
            """Compare the image lock with the sources if `--locked` is given."""
            if options.locked is not None:
                reader = context.image_reader(state, all_attachments=True)
                make_planner = partial(context.source_planner, state, reader)
                comparisons.append(
                    await compare_lock(context.calls, context.entries, make_planner, reader.find_attachments)
                )

        async def run() -> None:
            """Plan the mirrors, and compare the image lock with the sources at the same time."""
            await run_group([dry_run.run(context.plan_all(planner)), compare()])

        stopped = context.run_until_signal(run())
        summary = dry_run.summary
        summary.unrecorded = counter.by_target(context.entries)
        known = {(failed.source, failed.failure.message) for failed in summary.failures}
        for comparison in comparisons:
            summary.failures += [run_failure(*one) for one in comparison.failures if (one[0], one[1].what) not in known]
        if stopped is None:
            summary.failures += [run_failure(*one) for one in context.run_problems("all other images can be imported")]
            dry_run.find_bundles_to_rebuild(context.stores.registries)
    drifts = [drift for comparison in comparisons for drift in comparison.drifts]
    code = worst_exit_code({OK, *(failed.failure.exit_code for failed in summary.failures)})
    if code == OK and options.exit_code and (summary.changes or summary.bundles_to_rebuild or drifts):
        code = CHANGES
    code = code if stopped is None else stopped
    if options.json:
        locked = drifts if options.locked is not None else None
        lines = plan_document(summary, context.config.path, exit_code=code, drifts=locked).splitlines()
    else:
        lines = plan_lines(summary, context.config.path, verbose=options.verbosity > 0)
        lines += drift_lines(drifts, options.locked, context.config.path) if options.locked is not None else []
    written = print_lines(map(context.redact, lines))
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    return code if written == OK else written
