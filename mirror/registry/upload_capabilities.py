"""Records which upload methods a host accepts, and decides which blobs are sent in chunks."""

from __future__ import annotations

from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.registry.ecr_hosts import parse_ecr_host
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.structs import Struct, field

# The sources are listed in docs/compatibility.md, "Uploads in chunks".
_WITHOUT_CHUNKS = frozenset({"ghcr.io", "gcr.io"})
_DOMAINS_WITHOUT_CHUNKS = (".gcr.io", ".pkg.dev")
_MAX_LOST_SESSIONS = 2  # sessions that a registry may lose between chunks; then the blob is sent in one request


class ChunkSizes(Struct, frozen=True):
    """The sizes that determine which blobs are sent in chunks, and how large the chunks are. All sizes are in bytes.

    above: larger blobs are sent in chunks from the first attempt.
    first: the size of the first chunk. largest: the size to which chunks grow.
    smallest: the smallest size that is tried after a host has rejected larger chunks.
    seconds: the next chunk is twice as large if a chunk took less time than this."""

    above: int = 64 << 20
    first: int = 32 << 20
    largest: int = 256 << 20
    smallest: int = 4 << 20  # ghcr.io rejects larger chunks: https://github.com/oras-project/rust-oci-client/pull/37
    seconds: float = 5.0


DEFAULT_SIZES = ChunkSizes()


class UploadCapabilities(Struct):
    """The upload methods that one host accepts, as observed in this run.

    Thread-safe, because each write is atomic, and a recorded rejection is never reset."""

    needs_patch: bool = False  # the host requires a streamed PATCH and an empty PUT instead of one PUT
    chunk_size: int = 0  # bytes; 0 if the host has not rejected a large body
    rejects_chunks: bool = False
    lost_sessions: dict[Digest, int] = field(default_factory=dict)  # numbers of sessions that were lost between chunks
    sizes: ChunkSizes = field(default_factory=lambda: DEFAULT_SIZES)
    clock: Clock = field(default_factory=SystemClock)

    def first_chunk(self, blob: Descriptor) -> int:
        """Return the size of the first chunk in bytes, or 0 if the blob is sent in one request."""
        size, chunk = blob.size, self.chunk_size
        if size is None or self.rejects_chunks:
            return 0
        if not chunk and size > self.sizes.above and self.lost_sessions.get(blob.digest, 0) < _MAX_LOST_SESSIONS:
            chunk = self.sizes.first
        return chunk if chunk < size else 0

    def next_chunk(self, chunk: int, seconds: float) -> int:
        """Return the size of the chunk that follows a chunk of `chunk` bytes, which took `seconds`."""
        if self.chunk_size or seconds >= self.sizes.seconds:
            return chunk
        return max(chunk, min(chunk * 2, self.sizes.largest))

    def record_lost_session(self, digest: Digest, *, has_wrong_bytes: bool) -> None:
        """Record that a registry lost the session of a blob between chunks.

        has_wrong_bytes: whether the registry stored different bytes than it received. If so, the blob is not sent in
        chunks again."""
        self.lost_sessions[digest] = _MAX_LOST_SESSIONS if has_wrong_bytes else self.lost_sessions.get(digest, 0) + 1

    def record_broken_upload(self, digest: Digest, sent: int) -> None:
        """Record that an upload in one request broke after `sent` bytes, so that chunks are tried again."""
        if sent >= self.sizes.above:
            self.lost_sessions.pop(digest, None)


def is_known_to_reject_chunks(host: str) -> bool:
    """Return whether the registry on a host is known to reject uploads in chunks."""
    return host in _WITHOUT_CHUNKS or host.endswith(_DOMAINS_WITHOUT_CHUNKS) or parse_ecr_host(host) is not None
