"""`mirror verify`: print missing, damaged and differing images on the targets."""

from __future__ import annotations

from mirror.commands.options import Options
from mirror.commands.read_only import open_for_reading
from mirror.commands.summaries import verification_lines
from mirror.errors import OK, worst_exit_code
from mirror.output.console import print_lines
from mirror.sync.image_reader import Reader
from mirror.sync.verifier import Problem, Verify


def verify(options: Options) -> int:
    """Print the problems on the targets and return the exit code. Raises ConfigError, LocalError."""

    with open_for_reading(options) as (engine, state):
        reader = Reader(engine.calls, state, engine.manifests)
        walker = Verify(engine.calls, engine.stores.registries, reader, deep=options.deep)
        planner = engine.planner(state, walker, believe=False, remake=options.deep)
        stopped = engine.carry_out(walker.run(planner.all(engine.entries)))
        walker.account.problems += [Problem(*one) for one in engine.troubles()] if stopped is None else []
    shown = walker.account.problems or options.verbosity >= 0
    told = print_lines(verification_lines(walker.account, deep=options.deep)) if shown else OK
    if stopped is not None:
        return engine.signals.exit_if_hung(stopped)
    return worst_exit_code({told, *(problem.error.exit_code for problem in walker.account.problems)})
