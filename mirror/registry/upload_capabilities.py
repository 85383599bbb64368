"""Records which upload methods a host accepts."""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.util.structs import Struct, field


class UploadCapabilities(Struct):
    """The upload methods that one host accepts, as observed in this run.

    Thread-safe, because each write is atomic, and a recorded rejection is never reset."""

    needs_patch: bool = False  # the host requires a streamed PATCH and an empty PUT instead of one PUT
    chunk_size: int = 0  # bytes; 0 if the host has not rejected a large body
    rejects_chunks: bool = False
    broken_blobs: set[Digest] = field(default_factory=set)  # blobs whose upload failed after CHUNK_AFTER bytes
