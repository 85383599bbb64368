"""Opens a RegistryV2 for a scripted registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mirror.limits import Limits
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.util.retry_policy import Policy
from tests.registries.scripted import ScriptedRegistry


@contextmanager
def store(registry: ScriptedRegistry, *, attempts: int = 3) -> Iterator[RegistryV2]:
    """Yield a store that reads from and writes to `registry`. It hardly waits between attempts."""
    policy = Policy(attempts=attempts, base=0.001, cap=0.002)
    client = RegistryV2(Session(HostSettings(registry.host, plain_http=True), Limits(), policy=policy))
    try:
        yield client
    finally:
        client.close()
