"""Keys that have no effect in this version: each is an error with its position, in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.config import ConfigErrors, ConfigProblem, load, schema
from tests.support.bad_configs import LATER_KEYS, later

# All keys of the configuration, including those of later versions.
TOP = "version state spool spool-max log parallel registries report notify metrics defaults mirrors"
REGISTRY = """username password tls plain-http parallel rate proxy no-proxy timeouts token-realms allow-hosts v1
v1-checksums mount exclusive paths create login reserve bandwidth"""
MIRROR = (
    """repositories tags platforms index referrers recheck verify-signatures every foreign-layers schema1 base v1"""
)
TAGS = "include exclude semver newest min-age min-tags max-tags allow-empty immutable"
BELOW = """log.file log.level log.max-size log.backups parallel.images parallel.downloads parallel.uploads
notify[].url notify[].on notify[].format metrics.textfile registries.HOST.password.env registries.HOST.password.file
registries.HOST.tls.ca registries.HOST.tls.cert registries.HOST.tls.key registries.HOST.tls.verify
registries.HOST.timeouts.connect registries.HOST.timeouts.idle registries.HOST.create.type
registries.HOST.create.immutable-tags registries.HOST.create.scan-on-push registries.HOST.create.kms-key
registries.HOST.create.tags registries.HOST.create.endpoint registries.HOST.create.public
registries.HOST.create.storage-limit
registries.HOST.bandwidth.read registries.HOST.bandwidth.write registries.HOST.bandwidth.schedule
registries.HOST.bandwidth.schedule[].from registries.HOST.bandwidth.schedule[].to
registries.HOST.bandwidth.schedule[].read registries.HOST.bandwidth.schedule[].write
registries.HOST.paths.PREFIX.username registries.HOST.paths.PREFIX.password mirrors[].source mirrors[].targets
mirrors[].repositories.include mirrors[].repositories.exclude mirrors[].tags.newest.count mirrors[].tags.newest.by
mirrors[].referrers.include mirrors[].referrers.exclude mirrors[].referrers.require mirrors[].verify-signatures.keys"""


def test_the_schema_has_every_key_of_the_language() -> None:
    wanted = {
        *TOP.split(),
        *(f"registries.HOST.{key}" for key in REGISTRY.split()),
        *(f"{where}.{key}" for where in ("mirrors[]", "defaults") for key in MIRROR.split()),
        *(f"{where}.tags.{key}" for where in ("mirrors[]", "defaults") for key in TAGS.split()),
        *BELOW.split(),
    }
    assert set() == wanted - set(schema.key_paths())


def test_every_key_without_an_effect_is_in_the_corpus() -> None:
    flagged = {where.rpartition(".")[2] for where, part in schema.parts() if part.get("x-not-yet") is True}
    assert flagged == {key for _, key, _, _ in LATER_KEYS}


@pytest.mark.parametrize(("where", "key", "right", "wrong"), LATER_KEYS, ids=lambda value: value[:20])
def test_a_key_without_an_effect_has_one_message_regardless_of_its_value(
    where: str, key: str, right: str, wrong: str, tmp_path: Path
) -> None:
    for value in (right, wrong):
        (only,) = _problems(later(where, key, value), tmp_path)
        assert "not in this version; remove the key" == only.message
        assert only.path.endswith(f".{key}" if where != "top" else key)


def test_messages_about_unknown_keys_do_not_suggest_keys_without_an_effect() -> None:
    flagged = [where for where, part in schema.parts() if part.get("x-not-yet") is True]
    for key in {where.rpartition(".")[2] for where in schema.key_paths()}:
        for position in schema.paths_of(key):
            assert not any(position == one or position.startswith((f"{one}.", f"{one}[")) for one in flagged), position


def _problems(text: str, folder: Path) -> tuple[ConfigProblem, ...]:
    path = folder / "mirror.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    return caught.value.problems
