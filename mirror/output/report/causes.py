"""Groups failures by their cause, so that a wrong password that affects a thousand images is reported once.

Failures have the same cause if they have the same host, account, HTTP status, error code and hint.
"""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Iterator

from mirror.output.report.records import FailedImage
from mirror.output.report.remedies import REMEDIES
from mirror.util.structs import Struct, field

EXAMPLES = 3  # the maximum number of failures that are kept as examples for each cause
MAX_CAUSES = 200  # the number of causes after which new ones are distinguished only by their error codes

# Digests, also as parts of paths, and session ids.
_VARIABLE = re.compile(r"(?:sha(?:256|512)[:/])?(?:[0-9a-f]{2}/)?[0-9a-f]{12,}")

_Key = tuple[str, str, str, int | None, str, str]


class Cause(Struct):
    """A cause that several failures have in common, with their number and some examples.

    result: `failed` or `conflict`. host, account, status: see `Failure`; empty or None if they are unknown.
    retryable: whether a later run may succeed without any change, for all of these failures.
    images: the number of failed images. others: the number of other failures, for example of repositories that cannot
    be listed.
    text: the part of the messages that all failures share; empty if they share none.
    hints_differ: whether the hints differ in names or digests; `hint` is then the one for the first example.
    examples: up to EXAMPLES failures, the first ones in the order of their names."""

    result: str
    code: str
    host: str = ""
    account: str = ""
    status: int | None = None
    retryable: bool = True
    images: int = 0
    others: int = 0
    hints_differ: bool = False
    examples: list[FailedImage] = field(default_factory=list)
    _shared: list[str] | None = None  # the parts of `text`

    @property
    def count(self) -> int:
        """The number of failures with this cause."""
        return self.images + self.others

    @property
    def text(self) -> str:
        """The part of the messages that all failures with this cause share."""
        return ": ".join(self._shared or ())

    @property
    def hint(self) -> str:
        """The advice on how to resolve the cause; empty if there is none."""
        return (self.examples[0].failure.hint if self.examples else "") or REMEDIES.get(self.code, "")

    def add(self, failed: FailedImage) -> None:
        """Add a failure that has this cause."""
        self.images += failed.is_image
        self.others += not failed.is_image
        self.retryable = self.retryable and failed.failure.retryable
        self.hints_differ |= bool(self.examples) and failed.failure.hint != self.examples[0].failure.hint
        parts = _general_parts(failed)
        self._shared = parts if self._shared is None else _common_beginning(self._shared, parts)
        insort(self.examples, failed, key=lambda one: (one.source, one.target, one.failure.message))
        del self.examples[EXAMPLES:]


class Causes:
    """Collects the causes of failures. Memory use does not grow with the number of failures.

    The result does not depend on the order in which failures are added, unless there are more than MAX_CAUSES causes.
    Not thread-safe."""

    def __init__(self) -> None:
        self._causes: dict[_Key, Cause] = {}

    def add(self, failed: FailedImage) -> None:
        """Add a failure to the cause that it has in common with other failures, or create a cause."""
        failure = failed.failure
        key: _Key = (
            failed.result,
            failure.code,
            failure.host,
            failure.status,
            failure.account,
            _mask_names(failed.failure.hint, failed),
        )
        if key not in self._causes and len(self._causes) >= MAX_CAUSES:
            key = (failed.result, failure.code, "", None, "", "")
        cause = self._causes.get(key)
        if cause is None:
            result, code, host, status, account, _ = key
            cause = self._causes[key] = Cause(result, code, host, account, status)
        cause.add(failed)

    def __iter__(self) -> Iterator[Cause]:
        """Yield the causes. Causes that need action by the user come first; then the most frequent ones come first."""
        order = sorted(self._causes.items(), key=lambda item: (item[1].retryable, -item[1].count, str(item[0])))
        return (cause for _, cause in order)

    def __len__(self) -> int:
        return len(self._causes)


def _names(failed: FailedImage) -> list[str]:
    """Return the names of an image and of its repositories, the longest first."""
    references = (failed.source, failed.target)
    names = {one for name in references for one in (name, repository_name(name), name.partition("/")[2])}
    return sorted((one for one in names if "/" in one or ":" in one), key=len, reverse=True)


def repository_name(reference: str) -> str:
    """Return a reference without its tag or digest."""
    name = reference.partition("@")[0]
    head, _, tag = name.rpartition(":")
    return head if head and "/" not in tag and name == reference else name


def _mask_names(text: str, failed: FailedImage) -> str:
    """Return `text` with placeholders instead of the names of the image, digests and ids."""
    for name in _names(failed):
        text = text.replace(name, "*")
    return _VARIABLE.sub("*", text)


def _general_parts(failed: FailedImage) -> list[str]:
    """Split a message at its colons, and remove the leading parts that concern only this image or request."""
    parts, names = failed.failure.message.split(": "), _names(failed)
    while parts and ("://" in parts[0] or any(name in parts[0] for name in names) or _VARIABLE.search(parts[0])):
        del parts[0]
    return parts


def _common_beginning(one: list[str], other: list[str]) -> list[str]:
    """Return the longest common prefix of two lists."""
    count = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:count]
