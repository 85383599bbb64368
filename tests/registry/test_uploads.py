"""Uploads to registries that accept different methods."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mirror.errors import AuthError, MirrorError, NetworkError, Refused, RemoteError
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.registry import upload_capabilities
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.registry.upload_capabilities import ChunkSizes
from mirror.store import BlobReader
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.stores import MemoryStore, blob_of

DATA = random.Random(3).randbytes(700_000)
QUICK = Policy(attempts=3, base=0.001, cap=0.002)


class Uploader:
    """A client of a registry, and the bytes to upload."""

    def __init__(self, client: RegistryV2) -> None:
        self.client = client
        self.source = MemoryStore("source")
        self.moved = 0

    def work(self) -> Work:
        return Work(Stop(), self._progress, retries=False)

    def _progress(self, count: int) -> None:
        self.moved += count

    def upload(self, blob: Descriptor) -> None:
        """Make one attempt."""
        body = BlobDownload(blob, [BlobSource(self.source, "app")])
        with self.client.begin_upload("app", blob, self.work()) as session:
            session.send(lambda offset: body.open(offset, self.work()), self.work())

    def count_attempts(self, blob: Descriptor, count: int = 6) -> int:
        """Make attempts until one succeeds. Raises errors that are not retryable."""
        for attempt in range(1, count + 1):
            try:
                self.upload(blob)
            except MirrorError as error:
                if not error.retryable or attempt == count:
                    raise
            else:
                return attempt
        raise AssertionError


@contextmanager
def uploader(registry: ScriptedRegistry) -> Iterator[Uploader]:
    session = Session(HostSettings(registry.host, plain_http=True), Limits(), policy=QUICK)
    client = RegistryV2(session)
    try:
        yield Uploader(client)
    finally:
        client.close()


def request_kinds(registry: ScriptedRegistry) -> list[str]:
    return [seen.kind for seen in registry.requests()]


def assert_deleted(registry: ScriptedRegistry) -> None:
    """Check that the upload session was deleted. An interrupted PUT may be logged after that."""
    assert registry.wait_until_no_uploads()
    assert 1 == request_kinds(registry).count("DELETE upload")


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "large"])
def test_an_upload_is_a_post_and_a_put(scripted: ScriptedFactory, data: bytes) -> None:
    registry = scripted()
    with uploader(registry) as up:
        blob = up.source.add("app", data)
        up.upload(blob)
    assert ["POST upload", "PUT upload"] == request_kinds(registry)
    assert str(len(data)) == registry.log[-1].header("content-length")
    assert registry.has_blob("app", blob.digest)
    assert len(data) == up.moved
    assert registry.wait_until_no_uploads()


def test_a_blob_of_unknown_size_gets_its_size_from_the_source(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        blob = Descriptor(up.source.add("app", DATA).digest, None)
        up.upload(blob)
    assert ["POST upload", "PUT upload"] == request_kinds(registry)
    assert registry.has_blob("app", blob.digest)


@pytest.mark.parametrize(
    "actual", [DATA[:-1] + b"!", DATA[:-1], DATA + b"!", b""], ids=["flipped", "short", "long", "nothing"]
)
def test_wrong_bytes_are_never_sent_completely_and_the_session_is_deleted(
    scripted: ScriptedFactory, actual: bytes
) -> None:
    registry = scripted()
    blob = blob_of(DATA)
    with uploader(registry) as up:
        up.source.blobs["app"][blob.digest] = actual
        with pytest.raises(Refused) as caught:
            up.upload(blob)
    assert caught.value.code in ("digest_mismatch", "size_mismatch")
    assert not registry.has_blob("app", blob.digest)
    received = [entry.body_length for entry in list(registry.log) if entry.method == "PUT"]
    assert max(received, default=0) < len(DATA), "the end was held back"
    assert_deleted(registry)


def test_wrong_bytes_of_an_empty_blob_are_detected_before_the_request(scripted: ScriptedFactory) -> None:
    registry = scripted()
    blob = blob_of(b"")
    with uploader(registry) as up:
        up.source.blobs["app"][blob.digest] = b"surprise"
        with pytest.raises(Refused):
            up.upload(blob)
    assert ["POST upload", "DELETE upload"] == request_kinds(registry)


def test_an_upload_interrupted_by_the_source_is_deleted(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        up.source.cut_after = 300_000
        with pytest.raises(NetworkError):
            up.upload(up.source.add("app", DATA))
    assert_deleted(registry)


# ---- locations


@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        lambda path: path + "&digest_hint=%2Fx",
        lambda path: path.removeprefix("/v2/app/blobs/uploads/"),
    ],
    ids=["absolute path", "with a query", "relative"],
)
def test_the_location_is_used_unchanged(scripted: ScriptedFactory, form: Any) -> None:
    registry = scripted(locations=form)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        up.upload(blob)
    assert registry.has_blob("app", blob.digest)


@pytest.mark.parametrize(
    "location", [None, "", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:pw@127.0.0.1/x"]
)
def test_a_missing_or_unsafe_location_is_an_error(scripted: ScriptedFactory, location: str | None) -> None:
    registry = scripted()
    headers = [] if location is None else [("Location", location)]
    registry.fault("POST upload", times=9, status=202, headers=headers)
    with uploader(registry) as up, pytest.raises(MirrorError) as caught:
        up.upload(up.source.add("app", DATA))
    assert (caught.value.code == "unsafe_location") == bool(location)
    assert ["POST upload"] == request_kinds(registry)


# ---- other methods


@pytest.mark.parametrize("status", [404, 405, 415, 501])
def test_a_host_that_rejects_a_single_put_gets_a_patch_and_a_put_from_then_on(
    scripted: ScriptedFactory, status: int
) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=status)
    with uploader(registry) as up:
        first, second = up.source.add("app", DATA), up.source.add("app", DATA[1:])
        assert 2 == up.count_attempts(first)
        registry.mark()
        assert 1 == up.count_attempts(second)
    assert ["POST upload", "PATCH upload", "PUT upload"] == request_kinds(registry)
    assert registry.has_blob("app", first.digest)
    assert registry.has_blob("app", second.digest)
    assert registry.wait_until_no_uploads()


def test_a_body_that_a_proxy_rejects_as_too_large_is_sent_in_ever_smaller_chunks(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        upload_capabilities, "DEFAULT_SIZES", ChunkSizes(first=400_000, smallest=100_000, largest=400_000)
    )
    registry = scripted(max_body=210_000)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 3 == up.count_attempts(blob)
        registry.mark()
        assert 1 == up.count_attempts(up.source.add("app", DATA[1:]))
    assert ["POST upload", *["PATCH upload"] * 3, "PUT upload"] == request_kinds(registry)
    assert registry.has_blob("app", blob.digest)


def test_if_no_chunk_is_small_enough_the_hint_names_the_proxy_setting(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        upload_capabilities, "DEFAULT_SIZES", ChunkSizes(first=400_000, smallest=100_000, largest=400_000)
    )
    registry = scripted(max_body=1000)
    with uploader(registry) as up, pytest.raises(RemoteError) as caught:
        up.count_attempts(up.source.add("app", DATA))
    assert 413 == caught.value.status
    assert "client_max_body_size" in caught.value.hint


def test_a_small_body_that_is_too_large_is_not_sent_in_chunks(scripted: ScriptedFactory) -> None:
    registry = scripted(max_body=1000)
    with uploader(registry) as up, pytest.raises(RemoteError) as caught:
        up.count_attempts(up.source.add("app", DATA))
    assert not caught.value.retryable


def test_chunks_have_the_minimum_size_that_the_registry_requires(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        upload_capabilities, "DEFAULT_SIZES", ChunkSizes(first=100_000, smallest=50_000, largest=100_000)
    )
    registry = scripted(min_chunk=300_000, max_body=350_000)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 2 == up.count_attempts(blob)
    ranges = [one.header("content-range") for one in registry.log if one.header("content-range")]
    assert ["0-299999", "300000-599999", "600000-699999"] == ranges, "the last one with the closing PUT"
    assert registry.has_blob("app", blob.digest)


class KeptUpload:
    """An upload whose session is kept between attempts."""

    def __init__(self, up: Uploader, blob: Descriptor) -> None:
        self.up = up
        self.blob = blob
        self.body = BlobDownload(blob, [BlobSource(up.source, "app")])
        self.session = up.client.begin_upload("app", blob, up.work())

    def open(self, offset: int) -> BlobReader:
        return self.body.open(offset, self.up.work())

    def send(self) -> None:
        self.session.send(self.open, self.up.work())


@contextmanager
def in_chunks(registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptUpload]:
    """Yield an upload of DATA in chunks of 100,000 bytes."""
    sizes = ChunkSizes(first=100_000, largest=100_000)
    monkeypatch.setattr(upload_capabilities, "DEFAULT_SIZES", sizes)
    with uploader(registry) as up:
        up.client._capabilities.chunk_size = 100_000
        yield KeptUpload(up, up.source.add("app", DATA))


def test_chunks_are_resumed_after_the_last_acknowledged_one(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = scripted()
    with in_chunks(registry, monkeypatch) as kept:
        registry.fault("PATCH upload", nth=4, status=503)
        with pytest.raises(RemoteError):
            kept.send()
        assert kept.session.resumable
        kept.send()
        assert kept.session.committed
    patches = [one.header("content-range") for one in registry.log if one.method == "PATCH"]
    assert 7 == len(patches)
    assert 2 == patches.count("300000-399999")
    assert 1 == registry.counts()["GET upload"]
    assert registry.has_blob("app", kept.blob.digest)


@pytest.mark.parametrize("chunk", ["in the middle", "at the end"])
def test_the_received_part_of_an_interrupted_chunk_is_not_sent_again(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch, chunk: str
) -> None:
    """If the registry keeps it and reports it: distribution 3, ociregistry."""
    registry = scripted(keeps_partial=True)
    with in_chunks(registry, monkeypatch) as kept:
        registry.fault("PATCH upload", nth=4, cut_request_after=60_000 if chunk == "in the middle" else 100_000)
        with pytest.raises(RemoteError):
            kept.send()
        assert registry.journal.wait_idle()
        kept.send()
        assert kept.session.committed
    held = 360_000 if chunk == "in the middle" else 400_000
    ranges = [one.header("content-range") for one in registry.log if one.header("content-range")]
    assert "300000-399999" == ranges[3]
    assert f"{held}-{held + 99_999}" == ranges[4]
    assert registry.has_blob("app", kept.blob.digest)


def test_a_session_with_wrong_bytes_is_abandoned(scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = scripted()
    with in_chunks(registry, monkeypatch) as kept:
        body = b'{"errors":[{"code":"DIGEST_INVALID"}]}'
        registry.fault("PUT upload", status=400, body=body)
        with pytest.raises(Refused) as caught:
            kept.send()
        assert caught.value.retryable
        assert not kept.session.resumable


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_session_that_does_not_report_its_progress_is_not_resumed(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    registry = scripted()
    with in_chunks(registry, monkeypatch) as kept:
        registry.fault("PATCH upload", nth=4, status=503)
        registry.fault("GET upload", status=status)
        for _ in range(2):
            with pytest.raises(RemoteError) as caught:
                kept.send()
            assert caught.value.retryable
        assert not kept.session.resumable
        kept.session.close()
        assert 1 == kept.up.count_attempts(kept.blob)


def test_lost_bytes_of_a_chunk_are_detected(scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ChunkSizes(first=100_000, largest=100_000)
    monkeypatch.setattr(upload_capabilities, "DEFAULT_SIZES", sizes)
    registry = scripted()
    registry.fault("PATCH upload", nth=2, accept=50_000)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        up.client._capabilities.chunk_size = 100_000
        kept = KeptUpload(up, blob)
        with pytest.raises(RemoteError) as caught:
            kept.send()
        assert caught.value.retryable
        kept.session.close()
        assert 1 == up.count_attempts(blob)
    assert registry.has_blob("app", blob.digest)


# ---- unclear results


@pytest.mark.parametrize("status", [200, 202, 204])
def test_another_success_status_than_201_counts_only_if_the_blob_exists(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=status, after=True)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        up.upload(blob)
        assert 1 == registry.counts()["HEAD blob"]
        registry.fault("PUT upload", status=status)
        with pytest.raises(RemoteError) as caught:
            up.upload(up.source.add("app", DATA[1:]))
    assert caught.value.retryable


def test_a_registry_that_stores_another_blob_is_an_error(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=201, headers=[("Docker-Content-Digest", str(Digest.of(b"lie")))])
    with uploader(registry) as up, pytest.raises(Refused) as caught:
        up.upload(up.source.add("app", DATA))
    assert "target_lied" == caught.value.code


def test_an_upload_rejected_for_its_digest_is_retried_and_then_an_error_for_the_operator(
    scripted: ScriptedFactory,
) -> None:
    registry = scripted()
    body = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}'
    registry.fault("PUT upload", times=9, status=400, body=body)
    with uploader(registry) as up, pytest.raises(Refused) as caught:
        up.upload(up.source.add("app", DATA))
    assert caught.value.retryable
    assert "proxy" in caught.value.hint
    assert 0 == registry.counts()["PATCH upload"]


def test_an_upload_that_gets_a_401_starts_again_with_a_new_token(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=401)
    with uploader(registry) as up, pytest.raises(AuthError):
        up.upload(up.source.add("app", DATA))
    assert registry.wait_until_no_uploads()


def test_a_session_is_deleted_even_after_a_stop(scripted: ScriptedFactory) -> None:
    registry = scripted()
    stop = Stop()
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        with up.client.begin_upload("app", blob, Work(stop)):
            stop.request("a signal")
    assert ["POST upload", "DELETE upload"] == request_kinds(registry)


def test_a_failed_delete_of_a_session_is_ignored(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("DELETE upload", times=9, status=405)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        with up.client.begin_upload("app", blob, up.work()):
            pass
    assert 1 == registry.counts()["DELETE upload"]
