"""`mirror verify`: prints which images on the targets are missing, damaged or different from the source."""

from __future__ import annotations

from mirror.commands.options import Options
from mirror.commands.read_only import open_for_reading
from mirror.commands.summaries import verification_lines
from mirror.errors import OK, worst_exit_code
from mirror.output.console import print_lines
from mirror.sync.verifier import Problem, Verifier


def verify(options: Options) -> int:
    """Print the problems with images on the targets, and return the exit code. Raises ConfigError, LocalError."""
    with open_for_reading(options, work="verifying") as (context, state):
        reader = context.image_reader(state)
        registries = context.stores.registries
        verifier = Verifier(context.calls, registries, reader, context.signatures, context.progress, deep=options.deep)
        planner = context.planner(
            state, verifier, reader, use_hints=False, repeat_transforms=options.deep, reread_dates=options.deep
        )
        stopped = context.run_until_signal(verifier.run(context.plan_all(planner)))
        verifier.result.problems += [Problem(*one) for one in context.run_problems()] if stopped is None else []
    shown = verifier.result.problems or options.verbosity >= 0
    written = print_lines(verification_lines(verifier.result, deep=options.deep)) if shown else OK
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    return worst_exit_code({written, *(problem.error.exit_code for problem in verifier.result.problems)})
