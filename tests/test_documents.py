"""The reference pages in docs/ agree with the code: the rows of the fallback tables, and the limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirror.commands import copy, service_status
from mirror.config import signature_keys, yaml_reader
from mirror.layout import index, inventory
from mirror.layout.bundle import tar_reader
from mirror.oci import manifest, strictjson
from mirror.output import html_view, notification
from mirror.output.report import document, failure_ages, history
from mirror.output.report.remedies import REMEDIES
from mirror.registry import listings
from mirror.registry.convert import layers
from mirror.registry.http import dialer, pool, protocol, webhook
from mirror.registry.v1 import parsing
from mirror.selection import patterns, versions
from mirror.serve import server
from mirror.sync import image_dates, image_lock, manifest_graph, signature_checker
from mirror.util import host_use
from tests.registry.v1.test_fallback_source import ROWS

DOCS = Path(__file__).resolve().parent.parent / "docs"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def cells(page: str) -> list[list[str]]:
    """Return the rows of all tables of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def limit(label: str) -> int:
    """Return the first number of the row with this label, in bytes if it has a unit."""
    (value,) = [row[1] for row in cells("limits.md") if row[0] == label]
    found = re.match(r"([\d,]+) ?(\w*)", value)
    assert found is not None, value
    return int(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def test_every_row_of_the_fallback_tables_that_is_tested_is_documented() -> None:
    documented = {row[0].partition(",")[0] for row in cells("fallback.md")}
    tested = {row.name.partition(",")[0] for row in ROWS}
    assert set() == tested - documented
    assert {f"L{number}" for number in range(1, 23)} | {f"T{number}" for number in range(1, 12)} <= documented


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("nesting of YAML values", yaml_reader.MAX_DEPTH),
        ("aliases", yaml_reader.MAX_ALIASES),
        ("values, with aliases expanded", yaml_reader.MAX_VALUES),
        ("length of a tag pattern", patterns.LONGEST),
        ("length of a range of versions", versions.LONGEST),
        ("size of a manifest or index", manifest.MAX_BYTES),
        ("layers of an image, children of an index", manifest.MAX_ENTRIES),
        ("nesting of indexes", manifest_graph.MAX_DEPTH),
        ("size of a config that is read for its date", image_dates.MAX_CONFIG_BYTES),
        ("manifests below one root", manifest_graph.MAX_MANIFESTS),
        ("size of a signed payload or of a signature bundle", signature_checker.MAX_DOCUMENT),
        ("payloads and bundles read for one image", signature_checker.MAX_DOCUMENTS),
        ("signatures checked for one image", signature_checker.MAX_SIGNATURES),
        ("referrers read to find the signatures of one image", signature_checker.MAX_REFERRERS),
        ("keys in `verify-signatures`", signature_keys.MAX_KEYS),
        ("JSON nesting", strictjson.MAX_DEPTH),
        ("JSON values in one document", strictjson.MAX_NODES),
        ("names in a list of tags or repositories", listings.MAX_NAMES),
        ("pages of a list", listings.MAX_PAGES),
        ("size of a page", listings.MAX_PAGE_BYTES),
        ("names requested per page", listings.PAGE_SIZE),
        ("head of a response", protocol.MAX_HEAD),
        ("header lines of a response", protocol.MAX_FIELDS),
        ("addresses of one name that are tried", dialer.MAX_ADDRESSES),
        ("time for which an idle connection is kept", pool.MAX_IDLE),
        ("images in an ancestry", parsing.MAX_CHAIN),
        ("stored layer", layers.DEFAULT_LIMITS.stored),
        ("unpacked layer", layers.DEFAULT_LIMITS.unpacked),
        ("size of `index.json`", index.MAX_BYTES),
        ("references in `index.json`", index.MAX_ROOTS),
        ("size of an inventory", inventory.MAX_BYTES),
        ("size of an image lock", image_lock.MAX_BYTES),
        ("JSON values in an image lock", image_lock.MAX_NODES),
        ("members of a bundle", tar_reader.MAX_MEMBERS),
        ("name of a member", tar_reader.MAX_NAME),
        ("pax header or GNU long name", tar_reader.MAX_EXTENSION),
        ("connections", server.MAX_CONNECTIONS),
        ("consecutive cycles that fail before `/healthz` returns 503", service_status.MAX_FAILED_CYCLES),
        ("time without a request or copied bytes after which a cycle is stuck", service_status.STUCK_AFTER / 3600),
        ("time for which the state of an unused `mirror copy` is kept", copy.KEEP_STATE / 86400),
        ("runs in the history", history.MAX_RUNS),
        ("failing images in the history", failure_ages.MAX_FAILURES),
        ("size of the history", history.MAX_BYTES),
        ("intervals in which the requests to a host are counted", host_use.MAX_INTERVALS),
        ("pauses of a host in the report", host_use.MAX_PAUSES),
        ("size of a report that `mirror report` reads", document.MAX_BYTES),
        ("rows in the table of the HTML report", html_view.MAX_IMAGES),
        ("time to connect to a webhook", webhook.CONNECT_TIMEOUT),
        ("time for the request to a webhook and its response", webhook.EXCHANGE_TIMEOUT),
        ("lines of the summary in a message", notification.MAX_LINES),
        ("time after which the same failure is sent again", notification.REPEAT_AFTER.total_seconds() / 3600),
    ],
)
def test_the_page_of_limits_has_the_limits_of_the_code(label: str, value: float) -> None:
    assert value == limit(label)


def test_troubleshooting_has_the_remedy_of_each_error_code() -> None:
    documented = {row[0].strip("`"): row[1] for row in cells("troubleshooting.md") if row[0].startswith("`")}
    assert documented == REMEDIES
