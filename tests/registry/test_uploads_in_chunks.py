"""The uploads that are sent in chunks after an interruption, and registries that reject chunks."""

from __future__ import annotations

import pytest

from mirror.errors import MirrorError, NetworkError, RemoteError
from mirror.registry import uploads
from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registry.test_uploads import DATA, uploader

OTHER = DATA[1:]


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CHUNK_AFTER", 300_000)
    monkeypatch.setattr(uploads, "MAX_CHUNK", 200_000)
    monkeypatch.setattr(uploads, "MIN_CHUNK", 50_000)


def bodies(registry: ScriptedRegistry) -> list[tuple[str, int | None]]:
    """Return the requests that carried bytes of blobs: method and received bytes."""
    return [(one.method, one.body_length) for one in registry.log if one.kind in ("PUT upload", "PATCH upload")]


def test_an_interrupted_upload_does_not_affect_other_blobs(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PUT upload", cut_request_after=600_000)
    with uploader(registry) as up:
        blobs = [up.source.add("app", data) for data in (DATA, OTHER)]
        assert [2, 1] == [up.count_attempts(blob) for blob in blobs]
        registry.mark()
        up.upload(blobs[0])
    assert [("PUT", len(DATA))] == bodies(registry), "a blob that arrived is no longer one whose upload broke"


def test_an_interruption_of_the_source_does_not_count_as_one_of_the_upload(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        up.source.cut_after = 600_000
        blob = up.source.add("app", DATA)
        with pytest.raises(NetworkError):
            up.upload(blob)
        up.source.cut_after = None
        assert registry.journal.wait_for("PUT upload"), "the registry may read the interrupted request late"
        registry.mark()
        up.upload(blob)
    assert [("PUT", len(DATA))] == bodies(registry)


def test_an_error_of_the_source_does_not_change_the_upload_method(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        up.source.fault = lambda verb, repository, reference: (
            RemoteError("gone", status=404) if verb == "open" else None
        )
        with pytest.raises(RemoteError) as caught:
            up.upload(blob)
        assert not caught.value.retryable
        up.source.fault = lambda verb, repository, reference: None
        registry.mark()
        up.upload(blob)
    assert [("PUT", len(DATA))] == bodies(registry)


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
    registry.fault("PUT upload", cut_request_after=600_000)
    registry.fault("PATCH upload", nth=2, status=404)
    with uploader(registry) as up:
        blob = up.source.add("app", DATA)
        assert 3 == up.count_attempts(blob)
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
