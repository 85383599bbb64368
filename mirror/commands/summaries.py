"""What `plan` and `verify` found, in lines for people."""

from __future__ import annotations

from collections import Counter

from mirror.errors import printable
from mirror.output.report.summary import count, size
from mirror.sync.dry_run import Change, Outlook
from mirror.sync.verifier import Account


def outlook(found: Outlook) -> list[str]:
    """What a sync would do. One line where there is nothing to do."""
    lines = [_change(change) for change in sorted(found.changes, key=lambda change: change.target)]
    lines += [_failure(name, str(error)) for name, error in sorted(found.failures, key=lambda one: one[0])]
    for source, rules in sorted(found.rejected.items()):
        left_out = ", ".join(f"{count} by {printable(rule, 80)}" for rule, count in sorted(rules.items()))
        lines.append(f"{source}: tags left out: {left_out}")
    lines += [f"anew    {bundle}: it is incomplete" for bundle in found.anew]
    if not found.changes:
        anew = f"; {count(len(found.anew), 'bundle')} to be made anew" if found.anew else ""
        return [*lines, f"nothing to copy; {found.equal} up to date{anew}{_failed(len(found.failures))}"]
    kinds = Counter(_kind(change) for change in found.changes)
    compare = f"; {kinds['compare']} to compare" if kinds["compare"] else ""
    converted = len({change.source for change in found.changes if change.size is None})
    unknown = f"; plus {count(converted, 'image')} to be converted, whose size is not known before" if converted else ""
    return [
        *lines,
        f"to copy: {kinds['new']} new, {kinds['changed']} changed{compare}; {found.equal} up to date"
        f"{_failed(len(found.failures))}",
        f"at most {size(found.bytes_to_read)} to read, {size(found.bytes_to_send)} to send; "
        f"{count(found.manifests, 'manifest request')} that count{'s' if found.manifests == 1 else ''} against a pull "
        f"quota{unknown}",
    ]


def _kind(change: Change) -> str:
    if change.old is None:
        return "new"
    return "compare" if change.to_compare else "changed"


def _change(change: Change) -> str:
    how = f"{_kind(change):7}"
    why = f": {change.reason}" if change.reason else ""
    converted = f"{change.protocol}, to be converted{why}"
    what = converted if change.size is None else f"{size(change.size)}, {change.digest}"
    return f"{how} {change.source} -> {change.target} ({what})"


def _failed(count: int) -> str:
    return f"; {count} unknown" if count else ""


def _failure(name: str, why: str) -> str:
    return f"failed  {name}: {why}"


def verified(account: Account, *, deep: bool) -> list[str]:
    """What was verified, and each problem."""
    problems = sorted(account.problems, key=lambda problem: problem.name)
    lines = [f"{problem.name}: {problem.error}" for problem in problems]
    verdict = count(len(problems), "problem") if problems else "all whole"
    if account.uncompared:
        many = account.uncompared != 1
        verdict = f"{verdict if problems else 'whole'}, but {account.uncompared} not compared"
        lines.append(
            f"{count(account.uncompared, 'image')} could not be compared with {'their' if many else 'its'} source: "
            f"{'they are' if many else 'it is'} converted, and nobody remembers into what "
            "(`mirror sync CONFIG` compares, and so does `mirror verify --deep CONFIG`)"
        )
    how = count(account.blobs, "blob") + (f", {size(account.bytes)} hashed" if deep else "")
    return [*lines, f"verified: {count(account.images, 'image')}, {how}; {verdict}"]
