"""Uploads of large blobs in chunks, and registries that reject chunks."""

from __future__ import annotations

import random

import pytest

from mirror.errors import MirrorError, RemoteError
from mirror.registry import upload_capabilities
from mirror.registry.upload_capabilities import ChunkSizes, UploadCapabilities, is_known_to_reject_chunks
from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registry.test_uploads import DATA, KeptUpload, uploader

OTHER = DATA[1:]


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ChunkSizes(above=300_000, first=200_000, largest=200_000, smallest=50_000)
    monkeypatch.setattr(upload_capabilities, "DEFAULT_SIZES", sizes)


def bodies(registry: ScriptedRegistry) -> list[tuple[str, int | None]]:
    """Return the requests that carried bytes of blobs: method and received bytes."""
    return [(one.method, one.body_length) for one in registry.log if one.kind in ("PUT upload", "PATCH upload")]


CHUNKS: list[tuple[str, int | None]] = [*[("PATCH", 200_000)] * 3, ("PUT", 100_000)]


def test_a_large_blob_is_sent_in_chunks_from_the_first_attempt(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 1 == up.count_attempts(blob)
    assert CHUNKS == bodies(registry)
    assert registry.has_blob("app", blob.digest)


def test_a_blob_up_to_the_limit_is_sent_in_one_request(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        up.upload(up.source.add("app", DATA[:300_000]))
    assert [("PUT", 300_000)] == bodies(registry)


@pytest.mark.parametrize("keeps_partial", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_broken_connection_loses_at_most_one_chunk(scripted: ScriptedFactory, seed: int, keeps_partial: bool) -> None:
    chance = random.Random(seed)
    registry = scripted(keeps_partial=keeps_partial)
    registry.fault("PATCH upload", nth=chance.randint(2, 3), cut_request_after=chance.randint(1, 199_999))
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        kept = KeptUpload(up, blob)
        with pytest.raises(MirrorError):
            kept.send()
        assert registry.journal.wait_idle()
        kept.send()
        assert len(DATA) <= up.moved <= len(DATA) + 200_000
    assert 1 == registry.counts()["POST upload"]
    assert registry.has_blob("app", blob.digest)


def test_chunks_grow_while_they_take_little_time(scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ChunkSizes(above=100_000, first=50_000, largest=200_000, smallest=50_000)
    monkeypatch.setattr(upload_capabilities, "DEFAULT_SIZES", sizes)
    registry = scripted()
    with uploader(registry) as up:
        up.client._capabilities.clock = _FrozenClock()
        up.upload(up.source.add("app", DATA))
    assert [("PATCH", 50_000), ("PATCH", 100_000), ("PATCH", 200_000), ("PATCH", 200_000), ("PUT", 150_000)] == bodies(
        registry
    )


def test_chunks_do_not_grow_on_a_slow_connection_or_after_a_rejected_size() -> None:
    assert 32 == UploadCapabilities().next_chunk(32, 5.0)
    assert 64 == UploadCapabilities().next_chunk(32, 4.9)
    assert 32 == UploadCapabilities(chunk_size=32).next_chunk(32, 0.0)
    assert 1 << 30 == UploadCapabilities().next_chunk(1 << 30, 0.0), "the registry may require larger chunks"


class _FrozenClock:
    def now(self) -> float:
        return 0.0


def test_a_registry_that_stores_wrong_bytes_of_chunks_gets_the_blob_in_one_request(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}')
    with uploader(registry) as up:
        assert 2 == up.count_attempts(up.source.add("app", DATA))
    assert ("PUT", len(DATA)) == bodies(registry)[-1]


def test_a_registry_that_rejects_a_last_chunk_in_a_put_gets_it_in_a_patch(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", status=405)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        kept = KeptUpload(up, blob)
        with pytest.raises(RemoteError):
            kept.send()
        kept.send()
    assert [("PATCH", 100_000), ("PUT", 0)] == bodies(registry)[-2:]
    assert registry.has_blob("app", blob.digest)


@pytest.mark.parametrize(
    "host",
    [
        "ghcr.io",
        "gcr.io",
        "eu.gcr.io",
        "europe-docker.pkg.dev",
        "public.ecr.aws",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    ],
)
def test_hosts_that_are_known_to_reject_chunks_get_none(host: str) -> None:
    assert is_known_to_reject_chunks(host)


@pytest.mark.parametrize("host", ["docker.io", "notgcr.io", "ghcr.io.example.com", "localhost:5000"])
def test_other_hosts_get_chunks(host: str) -> None:
    assert not is_known_to_reject_chunks(host)


@pytest.mark.parametrize("status", [400, 404, 405, 415, 416, 501])
def test_a_registry_that_rejects_chunks_gets_whole_blobs_from_then_on(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted()
    registry.fault("PUT upload", cut_request_after=600_000)
    registry.fault("PATCH upload", status=status, times=FOREVER)
    with uploader(registry) as up:
        blobs = [up.source.add("app", data) for data in (DATA, OTHER)]
        assert 3 == up.count_attempts(blobs[0])
        registry.mark()
        registry.fault("PUT upload", cut_request_after=600_000)
        assert 2 == up.count_attempts(blobs[1])
    assert 0 == registry.counts()["PATCH upload"]
    assert [True, True] == [registry.has_blob("app", blob.digest) for blob in blobs]
    assert registry.wait_until_no_uploads()


def test_a_rejection_of_a_later_chunk_does_not_disable_chunks(scripted: ScriptedFactory) -> None:
    """For example, another replica does not know the session."""
    registry = scripted()
    registry.fault("PATCH upload", nth=2, status=404)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 2 == up.count_attempts(blob)
    assert 2 + 3 == registry.counts()["PATCH upload"]
    assert registry.has_blob("app", blob.digest)


def test_a_first_chunk_that_is_interrupted_or_meets_a_busy_registry_is_sent_again(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", cut_request_after=600_000)
    registry.fault("PATCH upload", cut_request_after=100_000)
    registry.fault("PATCH upload", status=503)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 4 == up.count_attempts(blob)
    assert registry.has_blob("app", blob.digest)


def test_a_body_limit_in_front_of_a_registry_without_chunks_is_an_error_with_a_hint(
    scripted: ScriptedFactory,
) -> None:
    registry = scripted(max_body=400_000, chunks=False)
    with uploader(registry) as up, pytest.raises(MirrorError) as caught:
        up.count_attempts(up.source.add("app", DATA))
    assert 413 == caught.value.status
    assert "client_max_body_size" in caught.value.hint
    assert 1 == registry.counts()["PATCH upload"]
