"""`python -m benchmarks`: compares tools that copy images between registries. See docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import files, surroundings, tables
from benchmarks.harness import measure
from benchmarks.samples import Outcome, Report
from benchmarks.scenarios import SCENARIOS, Scale
from benchmarks.tools import TOOLS, find

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen scenarios and tools, and write the results. Return 1 if `mirror` left unequal targets."""
    options = _parser().parse_args(arguments)
    scenarios = [scenario for scenario in SCENARIOS if not options.scenario or scenario.name in options.scenario]
    for scenario in [one for one in scenarios if one.program and find(one.program) is None]:
        _say(f"{scenario.name} is left out: {scenario.program} is not installed; run `make bench-tools`")
        scenarios.remove(scenario)
    tools = [tool for tool in TOOLS if not options.tools or tool.name in options.tools]
    scale = Scale(quick=options.quick, big=options.size)
    machine, versions = surroundings.machine(), surroundings.versions(tools)
    print("; ".join(f"{name} {text}" for name, text in {**machine, **versions}.items()), flush=True)
    outcomes: list[Outcome] = []
    try:
        for scenario in scenarios:
            outcomes.append(measure(scenario(scale), tools, runs=options.runs or scenario.runs, say=_say))
            print(f"\n{tables.plain(outcomes[-1])}", flush=True)
    except KeyboardInterrupt:
        print("interrupted; the results so far are written", file=sys.stderr)
        return 130
    finally:
        date = datetime.now(UTC).isoformat(timespec="minutes")
        measured = {outcome.name for outcome in outcomes}
        left_out = [scenario.name for scenario in SCENARIOS if scenario.name not in measured]
        tools_left_out = [tool.name for tool in TOOLS if tool not in tools]
        report = Report(date, options.quick, machine, versions, outcomes, left_out, tools_left_out)
        if options.into:
            print(files.write(report, options.into, options.docs), flush=True)
    incorrect = [one.name for one in outcomes if "mirror" in one.tools and not one.correct("mirror")]
    for name in incorrect:
        print(f"NOT EQUAL: {name}: mirror", file=sys.stderr)
    return 1 if incorrect else 0


def _say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names, tools = [scenario.name for scenario in SCENARIOS], [tool.name for tool in TOOLS]
    parser.add_argument(
        "--scenario", action="append", choices=names, help="run only this scenario; may be given several times"
    )
    parser.add_argument("--tools", nargs="+", choices=tools, help="run only these tools")
    parser.add_argument(
        "--runs", type=_count, help="runs per tool and scenario (default: 5; 3 if a round takes minutes)"
    )
    parser.add_argument("--quick", action="store_true", help="reduce counts and sizes, to check that everything works")
    parser.add_argument("--size", type=_size, default=_size("1 GiB"), help="size of the big image (default: 1 GiB)")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help=f"write {files.FIGURES}, {files.PAGE} and {files.CHART} to FOLDER"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="after a complete run (all scenarios, all tools, full size), write the page and its chart to this FOLDER "
        "and not to that of --into",
    )
    return parser


def _count(text: str) -> int:
    """Parse a number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return int(text)


def _size(text: str) -> int:
    """Parse a size such as `8 GiB`, and return it in bytes."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in _UNITS or not number.isdigit():
        raise argparse.ArgumentTypeError(f"expected a size such as `8 GiB`, got {text!r}")
    return int(number) * _UNITS[unit]


if __name__ == "__main__":
    sys.exit(main())
