"""The values that messages about a configuration suggest are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirror.config import ConfigErrors, ConfigProblem, load
from tests.support.bad_configs import CASES, Case

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_KEY = re.compile(
    rf"did you mean ({_QUOTED})\?|this host needs a port: .*; write ({_QUOTED}), or|key read as .*; write ({_QUOTED})$"
)
_VALUE = re.compile(
    rf"; write (\[?{_QUOTED}\]?)|; write (\w+), without quotes|; write (\w+), or remove the key"
    rf"|did you mean (\w+)\?|; write (\{{env: \w+\}})"
)
_REMOVE = re.compile(r"; remove the key$")
_SUGGESTS = re.compile(r"; write |did you mean")
_WRITTEN = re.compile(rf"{_QUOTED}|'[^']*'|[^\s,\[\]]*\{{\w+\}}[^\s,\[\]]*|\[[^\]]*\]|[^,\]}}\n]*")


def problems(path: Path) -> tuple[ConfigProblem, ...]:
    try:
        load(path, secrets=False)
    except ConfigErrors as error:
        return error.problems
    return ()


def corrected(text: str, problem: ConfigProblem) -> str | None:
    """Return the file with the suggestion of the message applied; None if the message has no literal suggestion."""
    lines = text.split("\n")
    line, at = lines[problem.position.line - 1], problem.position.column - 1
    key, value = _KEY.search(problem.message), _VALUE.search(problem.message)
    if key is not None:
        end = _end(re.compile(rf"{_QUOTED}|[^\s:]+(?::\d+)?"), line, at)
        new = line[:at] + next(found for found in key.groups() if found) + line[end:]
    elif value is not None:
        end = _end(_WRITTEN, line, at)
        new = line[:at] + next(found for found in value.groups() if found) + line[end:]
    elif _REMOVE.search(problem.message):
        name = re.escape(problem.path.rpartition(".")[2])
        start = max(found.start() for found in re.finditer(rf",? ?{name}: ", line[:at]))
        new = line[:start] + line[_end_of_flow(line, at) :]
    else:
        return None
    lines[problem.position.line - 1] = new
    return "\n".join(lines)


def _end(pattern: re.Pattern[str], line: str, at: int) -> int:
    found = pattern.match(line, at)
    assert found is not None
    return found.end()


def _end_of_flow(line: str, at: int) -> int:
    """Return the end of a value in a flow mapping."""
    depth = 0
    for end in range(at, len(line)):
        depth += (line[end] in "{[") - (line[end] in "}]")
        if depth < 0 or (depth == 0 and line[end] == ","):
            return end
    return len(line)


def _suggesting() -> list[Case]:
    return [case for case in CASES if isinstance(case.text, str)]


@pytest.mark.parametrize("case", _suggesting(), ids=lambda case: case.id)
def test_a_suggested_value_is_accepted(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "mirror.yaml"
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert isinstance(case.text, str)
    text = case.text
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    first = problems(path)
    if case.fixed is not None:
        path.write_text(text.replace(*case.fixed), encoding="utf-8")
        assert () == problems(path)
        return
    remedied: set[str] = set()
    while True:
        again = [problem for problem in first if problem.path in remedied and corrected(text, problem) is not None]
        assert [] == again, text
        better = text
        for problem in reversed(first):  # the last one first: what comes before stays at its place
            written = corrected(better, problem)
            assert written is not None or not _SUGGESTS.search(problem.message), problem
            if written is not None:
                remedied.add(problem.path)
                better = written
        if better == text:
            break
        text = better
        path.write_text(text, encoding="utf-8")
        first = problems(path)  # a remedy may show what comes next
    assert [] == [problem for problem in first if problem.path in remedied], text


def test_most_cases_have_a_suggestion_that_is_tried() -> None:
    words = ("write ", "did you mean", "remove the key")
    told = [case for case in CASES if any(word in says for word in words for says in case.says)]
    assert len(told) > 100
