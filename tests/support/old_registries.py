"""Opens a scripted v1 registry as a run does, with quick retries and a layer cache of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirror.commands.registry_sources import RegistrySources
from mirror.errors import MirrorError
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings, Secret, TlsSettings, V1Mode
from mirror.registry.session import Session
from mirror.store import Source, Transform, TransformResult, Version
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries import v1
from tests.registries.scripted import ScriptedRegistry

WORK = Work(Stop())
QUICK = Policy(attempts=3, base=0.001, cap=0.002)


def old_registry(scripted: ScriptedFactory, server: v1.V1, **options: Any) -> ScriptedRegistry:
    """Return a registry that supports only v1."""
    registry = scripted(**options)
    registry.v1, registry.hook = server, v1.no_v2
    return registry


@contextmanager
def opened(
    registry: ScriptedRegistry | str,
    folder: Path,
    *,
    mode: V1Mode = V1Mode.AUTO,
    schema1: bool = False,
    login: tuple[str, str] | None = None,
    limit: int | None = None,
    **settings: Any,
) -> Iterator[Source]:
    """Yield the registry as a source."""
    host = registry if isinstance(registry, str) else registry.host
    if login is not None:
        settings |= {"username": login[0], "password": Secret("the test", plain=login[1])}
    tls = registry.tls if isinstance(registry, ScriptedRegistry) else None
    settings = ({"tls": TlsSettings(ca=tls.ca)} if tls else {"plain_http": True}) | settings
    host_settings = HostSettings(host, **{"connect_timeout": 30.0, "idle_timeout": 30.0, **settings})
    limits = Limits()
    credentials = CredentialSource({host: host_settings}, {"HOME": str(folder)})
    session = Session(host_settings, limits, policy=QUICK)
    authorizer = HostAuthorizer(
        host_settings, credentials, session.send_one_off, session.url_policy.check_realm, limits.clock
    )
    session.authorizer = authorizer
    v2 = RegistryV2(session)
    sources = RegistrySources(credentials, limits, folder / "converted", limit, policy=QUICK)
    try:
        yield sources.open(v2, authorizer, host_settings, v1=mode, convert_schema1=schema1)
    finally:
        v2.close()
        sources.close()


def outcome(source: Source, repository: str, references: Sequence[str] = ()) -> list[Version | MirrorError]:
    """Return what a plan sees: the versions or errors of all tags, or of `references`. An error of the whole listing is
    alone."""
    try:
        names = list(references)
        refused: list[Version | MirrorError] = []
        if not names:
            for name in source.tags(repository, WORK):
                if isinstance(name, str):
                    names.append(name)
                else:
                    refused.append(name)
            names.sort()
        return [*refused, *source.resolve(repository, names, WORK)]
    except MirrorError as error:
        return [error]


def transform_of(source: Source, repository: str, tag: str) -> Transform:
    """Return the conversion of a tag. Raises the error of the tag, and LookupError if the tag is not converted."""
    (version,) = source.resolve(repository, [tag], WORK)
    if isinstance(version, MirrorError):
        raise version
    if version.transform is None:
        raise LookupError(f"{tag} is not converted")
    return version.transform


def made(transform: Transform, work: Work = WORK) -> TransformResult:
    """Convert an image: make its parts one after another, and finish it."""
    for part in transform.parts(work):
        transform.create_part(part, work)
    return transform.build_image(work)


def blob(result: TransformResult, descriptor: Descriptor, offset: int = 0) -> bytes:
    """Return the bytes of a blob of a converted image."""
    out, buffer = bytearray(), memoryview(bytearray(1000))
    with result.source.open_blob(result.repository, descriptor, WORK, offset=offset) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)
