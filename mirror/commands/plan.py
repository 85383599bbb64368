"""`mirror plan`: prints what a sync would do."""

from __future__ import annotations

from mirror.commands.options import Options
from mirror.commands.read_only import open_for_reading
from mirror.commands.summaries import plan_lines
from mirror.errors import CHANGES, OK, worst_exit_code
from mirror.output.console import print_lines
from mirror.sync.dry_run import DryRun
from mirror.sync.image_reader import ImageReader
from mirror.sync.platform_reader import PlatformReader


def plan(options: Options) -> int:
    """Print what a sync would do and return the exit code. Copies nothing. Raises ConfigError, LocalError."""
    with open_for_reading(options) as (context, state):
        context.check_no_partial_bundle(options)
        images = ImageReader(context.calls, state, context.manifests)
        dry_run = DryRun(PlatformReader(context.calls, context.manifests), images, context.bases(state))
        planner = context.planner(state, dry_run, use_hints=not options.deep)
        stopped = context.run_until_signal(dry_run.run(planner.plan_all(context.entries)))
        summary = dry_run.summary
        if stopped is None:
            summary.failures += context.run_problems("all other images can be imported")
            dry_run.find_bundles_to_rebuild(context.stores.registries)
    written = print_lines(plan_lines(summary))
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    code = worst_exit_code({written, *(error.exit_code for _, error in summary.failures)})
    return CHANGES if code == OK and options.exit_code and (summary.changes or summary.bundles_to_rebuild) else code
