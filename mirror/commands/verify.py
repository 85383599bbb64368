"""`mirror verify`: prints which images on the targets are missing, damaged or different from the source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mirror.commands.options import Options
from mirror.commands.read_only import open_for_reading, run_cost
from mirror.commands.run_log import command_completer
from mirror.commands.session import RunContext
from mirror.commands.summaries import verification_lines
from mirror.errors import OK, worst_exit_code
from mirror.output.console import print_lines
from mirror.output.report import ImageEntry, Report
from mirror.sync.report_entries import mirror_entry, run_failure
from mirror.sync.verifier import Verifier


def verify(options: Options) -> int:
    """Print the problems with images on the targets, write the report, and return the exit code.

    Raises ConfigError, LocalError."""
    started, started_monotonic = datetime.now(UTC), time.monotonic()
    with (
        open_for_reading(options, work="verifying") as (context, state),
        _open_report(options, context, started) as report,
    ):

        def receive_entry(entry: ImageEntry) -> None:
            """Add the result for one image to the report, if a report is written."""
            if report is not None:
                report.add(entry)

        reader = context.image_reader(state)
        registries = context.stores.registries
        verifier = Verifier(
            context.calls,
            registries,
            reader,
            context.progress,
            deep=options.deep,
            receive_entry=receive_entry,
        )
        planner = context.planner(
            state, verifier, reader, use_hints=False, repeat_transforms=options.deep, reread_dates=options.deep
        )
        stopped = context.run_until_signal(verifier.run(context.plan_all(planner)))
        problems = verifier.result.problems
        for name, error in context.run_problems() if stopped is None else ():
            problems.append(run_failure(name, error))
            receive_entry(mirror_entry(problems[-1], error))
        code = worst_exit_code({OK, *(problem.failure.exit_code for problem in problems)})
        if report is not None:
            cost = run_cost(context.limits, started_monotonic)
            report.finish(code if stopped is None else stopped, ended=datetime.now(UTC), cost=cost)
    lines = verification_lines(verifier.result, context.config.path, deep=options.deep, report=options.report)
    written = print_lines(map(context.redact, lines)) if problems or options.verbosity >= 0 else OK
    return worst_exit_code({written, code}) if stopped is None else context.signals.exit_if_hung(stopped)


@contextmanager
def _open_report(options: Options, context: RunContext, started: datetime) -> Iterator[Report | None]:
    """Return a context manager that yields the report for `--report`, or None without this option.

    Raises LocalError if its file is not writable."""
    if options.report is None:
        yield None
        return
    with Report.at(
        options.report,
        run=context.run,
        started=started,
        redact=context.redact,
        command="verify",
        complete=command_completer(context.config.path.absolute(), options),
    ) as report:
        yield report
