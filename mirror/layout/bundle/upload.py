"""The upload of one blob to a new bundle."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from mirror.layout.bundle.writer import BundleWriter
from mirror.oci.descriptor import Descriptor
from mirror.store import BlobReader
from mirror.util.cancellation import Work


class BundleUpload:
    """An UploadSession that writes one blob to its position in a new bundle. A failed upload needs no cleanup."""

    resumable = False

    def __init__(self, writer: BundleWriter, blob: Descriptor) -> None:
        self._writer = writer
        self._blob = blob
        self.committed = False

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Write the blob, unless the bundle already has it.

        body: opens the blob at an offset in bytes. Raises Refused, LocalError, Cancelled, and the exceptions of
        `body`."""
        self._writer.write(self._blob, body, work)
        self.committed = True

    def __enter__(self) -> BundleUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
