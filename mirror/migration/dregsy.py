"""Converts the configuration of dregsy (https://github.com/xelalexv/dregsy)."""

from __future__ import annotations

import base64
import binascii
import json
import re

from mirror.errors import ConfigError
from mirror.migration.conversion import Conversion, ConvertedMirror, merge_mirrors
from mirror.migration.dregsy_paths import map_paths
from mirror.migration.dregsy_tags import select_tags
from mirror.migration.peer_file import NotConvertible, Note, ToolMapping
from mirror.migration.registry_settings import RegistrySettings, host_or_reject
from mirror.migration.schedules import crontab_line_for_seconds
from mirror.oci.platform import parse_platform
from mirror.registry.ecr_hosts import parse_ecr_host

_TOOL = "dregsy"
_GOOGLE = re.compile(r"(?:[a-z]+\.)?gcr\.io|.+-docker\.pkg\.dev")
_DEFAULT_CERTIFICATES = "/etc/skopeo/certs.d"
_FLAGS = "the flag -run of dregsy is `mirror sync --only PATTERN`, with patterns for sources instead of names of tasks"


def convert(top: ToolMapping) -> Conversion:
    """Convert a configuration of dregsy. Raises NotConvertible if its sections have the wrong form."""
    conversion, settings = Conversion(notes=top.notes), RegistrySettings()
    conversion.registries = settings.by_host
    conversion.notes.append(Note(1, "", _FLAGS))
    certificates = _convert_relays(top)
    mirrors: list[ConvertedMirror] = []
    without_platform: list[Note] = []
    for task in top.mappings("tasks"):
        try:
            mirrors += _convert_task(task, settings, certificates, without_platform)
        except NotConvertible as error:
            conversion.notes.append(error.note)
        task.note_unknown_keys(_TOOL)
    conversion.notes += without_platform[:1]
    conversion.mirrors = merge_mirrors(mirrors, conversion.notes)
    top.note_unknown_keys(_TOOL)
    return conversion


def _convert_relays(top: ToolMapping) -> str | None:
    """Add notes about the settings of the relays and of the lister, which are not converted.

    Return the directory with the certificates of skopeo, or None if docker is the relay."""
    relay = top.text("relay") or "docker"
    if relay == "docker":
        what = (
            "not converted: images are not copied through a docker daemon. If it has settings for the certificates of"
        )
        top.note("relay" if top.has("relay") else None, f"{what} registries, set `tls` under `registries`")
    docker, skopeo, lister = top.mapping("docker"), top.mapping("skopeo"), top.mapping("lister")
    for peer in [top] if docker is None else [top, docker]:
        for key in ("dockerhost", "api-version"):
            peer.note_if_present(key, "not needed: images are not copied through a docker daemon")
    if docker is not None:
        docker.note_unknown_keys(_TOOL)
    directory = None
    if skopeo is not None:
        skopeo.note_if_present("binary", "not needed: skopeo is not used")
        directory = skopeo.text("certs-dir")
        skopeo.note_unknown_keys(_TOOL)
    if lister is not None:
        lister.note_if_present("maxItems", "not needed: the list of repositories is always read completely")
        lister.note_if_present("cacheDuration", "not needed: each list of repositories is read once per run")
        lister.note_unknown_keys(_TOOL)
    top.note_if_present("watch", "not needed: each `mirror sync` reads the configuration file")
    return (directory or _DEFAULT_CERTIFICATES) if relay == "skopeo" else None


def _convert_task(
    task: ToolMapping, settings: RegistrySettings, certificates: str | None, without_platform: list[Note]
) -> list[ConvertedMirror]:
    """Convert one task to entries. A mapping that cannot be converted is left out, with a note.

    without_platform: a list to which a note is added for each mapping without a platform. Raises NotConvertible."""
    task.text("name")  # marks the name as read; it has no equivalent, and no effect on the copied images
    interval = task.number("interval")
    if interval:
        what = "not converted: start `mirror sync` with cron, for example:"
        task.note("interval", f"{what} {crontab_line_for_seconds(interval)}")
    if task.flag("verbose"):
        task.note("verbose", "not converted: `mirror sync -v` prints more, and `log.level` sets the details in the log")
    source, target = task.mapping("source"), task.mapping("target")
    if source is None or target is None:
        task.reject(None, "left out: a task needs `source` and `target`; correct the file")
    registries = []
    for peer, is_target in ((source, False), (target, True)):
        registries.append(_convert_registry(peer, settings, certificates, is_target=is_target))
        peer.note_unknown_keys(_TOOL)
    mirrors: list[ConvertedMirror] = []
    for mapping in task.mappings("mappings"):
        notes: list[Note] = []
        peer = mapping.with_notes(notes)
        if not mapping.has("platform"):
            what = "mappings without `platform`: dregsy copies the platform of its host, but `mirror` copies all"
            only = "platforms. To copy only one platform, add `platforms: [linux/amd64]`"
            mapping.with_notes(without_platform).note(None, f"{what} {only}")
        try:
            mirrors += _convert_mapping(peer, registries[0], registries[1])
        except NotConvertible as error:
            task.notes += [*notes, error.note]
    return mirrors


def _convert_registry(
    peer: ToolMapping, settings: RegistrySettings, certificates: str | None, *, is_target: bool
) -> str:
    """Convert the source or target of a task, and return its registry. Raises NotConvertible."""
    registry = peer.text("registry")
    if not registry:
        peer.reject(None, "left out: the registry is missing; correct the file")
    host = host_or_reject(peer, "registry", registry)
    auth = peer.text("auth")
    is_ecr = parse_ecr_host(host) is not None
    if peer.has("auth-refresh") and is_ecr:
        settings.set(host, "login", "ecr", peer, "auth-refresh")
    elif peer.has("auth-refresh"):
        peer.note("auth-refresh", "not converted: dregsy supports this key only for Amazon ECR", lost=True)
    elif auth == "none":
        peer.note("auth", "not converted: access is anonymous only if docker's configuration has no login, either")
    elif auth:
        _convert_auth(peer, host, auth, settings)
    elif _GOOGLE.fullmatch(host):
        what = "not converted: dregsy gets a token from Google. Run `gcloud auth configure-docker`, which adds a"
        peer.note(None, f"{what} credential helper for {host} to docker's configuration, which `mirror` uses")
    if is_target and is_ecr:
        settings.set(host, "create", "ecr", peer, None)
    if peer.flag("skip-tls-verify"):
        settings.set_unverified(host, peer, "skip-tls-verify")
    if certificates is not None:
        folder = f"{certificates}/{host.partition(':')[0]}"
        settings.read_certificates(host, folder, peer, "registry", optional=certificates == _DEFAULT_CERTIFICATES)
    lister = peer.mapping("lister")
    if lister is not None:
        kind = lister.text("type") or "catalog"
        if kind != "catalog":
            lister.note("type", "not converted: the API of Docker Hub is used to list the repositories of a namespace")
        lister.note_if_present("search", "not converted: `from` must begin with the namespace that is listed")
        for key in ("maxItems", "cacheDuration"):
            lister.note_if_present(key, "not needed: the list of repositories is read completely, once per run")
        lister.note_unknown_keys(_TOOL)
    return host


def _convert_auth(peer: ToolMapping, host: str, auth: str, settings: RegistrySettings) -> None:
    """Convert a login, which is base64-encoded JSON. If its form is invalid, add a note that does not quote it."""
    try:
        login = json.loads(base64.b64decode(auth, validate=True))
        username, password = login["username"], login["password"]
    except (binascii.Error, ValueError, KeyError, TypeError):
        what = "not converted: expected the base64 form of a JSON object with the keys username and password; set both"
        peer.note("auth", f"{what} under `registries`", lost=True)
        return
    if isinstance(username, str) and username and isinstance(password, str) and password:
        settings.set_login(host, username, password, peer, "auth")


def _convert_mapping(peer: ToolMapping, source: str, target: str) -> list[ConvertedMirror]:
    """Convert one mapping to entries: one for its tags, and one for each digest. Raises NotConvertible."""
    paths = map_paths(peer, source, target)
    tags, pinned = select_tags(peer)
    options: tuple[tuple[str, object], ...] = ()
    platform = peer.text("platform")
    if platform not in (None, "all"):
        try:
            parse_platform(str(platform))
        except ConfigError as error:
            peer.reject("platform", f"left out: {error}")
        options = (("platforms", [platform]),)
    peer.note_unknown_keys(_TOOL)
    if pinned and paths.repositories != ((), ()):
        what = "left out: a digest cannot be copied from several repositories; write one mapping for each repository"
        peer.reject("tags", what)
    notes = tuple(peer.notes)
    found = []
    if tags is not None:
        found.append(
            ConvertedMirror(peer.line, paths.source, (paths.target,), tags, paths.repositories, options, notes)
        )
    for reference in pinned:
        read = f"{paths.source}{reference}"
        found.append(ConvertedMirror(peer.line, read, (paths.target,), options=options, notes=() if found else notes))
    return found
