"""The HTML report in headless Chromium, at the widths of a desktop and of a phone. `make test-browser` installs it.

MIRROR_TESTS_SCREENSHOTS=FOLDER saves a screenshot of each part of the page.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options as ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from mirror.output.report import Failure, ImageEntry, Report, RunCost
from mirror.output.report.history import History, PastRun, read_history, write_history
from mirror.util.host_use import HostUsage, Pause
from tests.support.tool import MirrorTool
from tests_real.installed import FOLDER, find_tool

IMAGES = 2000
STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
WIDTHS = {"desktop": 1280, "phone": 390}
# Each would set `window.hacked` if it were more than text.
HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "</title></style></script><svg onload=window.hacked=1>",
    "' autofocus onfocus='window.hacked=1",
    "javascript:window.hacked=1",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run with IMAGES images, of which some failed and some have hostile names."""
    folder = tmp_path_factory.mktemp("browser")
    state, chance = folder / "state", random.Random(1)
    state.mkdir()
    with Report(state, run="0a1b2c3d4e5f", started=STARTED) as report:
        for number in range(IMAGES - len(HOSTILE)):
            report.add(_entry(f"team-{number % 12}/service-{number % 60}", f"v{number}", chance))
        for text in HOSTILE:
            error = Failure("bad_response", f"the answer is {text}", hint=text)
            report.add(ImageEntry(f"evil.example/app:{text}", f"h/app:{text}", "failed", error=error))
        counts = [chance.randrange(60) for _ in range(100)]
        hosts = {"quay.io": HostUsage({"200": 2900}, 2.0, counts, [Pause(60.0, 42.0), Pause(150.0, 5.0)])}
        requests = {"quay.io": {"HEAD manifest": IMAGES, "GET blob": 900}}
        cost = RunCost(requests, retries=14, waited=90.0, retry_after=3600.0, hosts=hosts)
        document = report.finish(1, ended=STARTED + timedelta(seconds=231), cost=cost)
    past = [_past_run(number, chance) for number in range(99)]
    write_history(state, History(runs=past).with_run(document, {}))
    assert 100 == len(read_history(state).runs)
    with MirrorTool(folder / "tool") as tool:
        assert 0 == tool("report", state, "--html", folder / "report.html").code
    return folder / "report.html"


def _entry(repository: str, tag: str, chance: random.Random) -> ImageEntry:
    source, target = f"quay.io/{repository}:{tag}", f"registry.example.com/mirror/{repository}:{tag}"
    digest = f"sha256:{chance.randbytes(32).hex()}"
    draw = chance.random()
    if draw < 0.1:
        text, hint = f"{target}: the registry refuses the push", "check the permissions of user acme"
        return ImageEntry(source, target, "failed", error=Failure("auth_denied", text, hint=hint, status=403))
    if draw < 0.5:
        sizes = {"read": 10**6, "sent": chance.randrange(10**8), "mounted": chance.randrange(10**7)}
        blobs = {"copied": chance.randrange(9), "mounted": chance.randrange(4)}
        return ImageEntry(source, target, "copied", digest=digest, blobs=blobs, bytes=sizes, seconds=3.5)
    return ImageEntry(source, target, "up-to-date", digest=digest)


def _past_run(number: int, chance: random.Random) -> PastRun:
    started = STARTED - timedelta(minutes=15 * (100 - number))
    ended = started + timedelta(seconds=chance.randrange(5, 200))
    images = {"copied": chance.randrange(500), "up-to-date": 1500, "failed": chance.choice([0, 0, 90])}
    code = chance.choice([0, 0, 0, 1, 143])
    return PastRun(f"r{number}", started, ended, code, images, {"sent": chance.randrange(10**10)}, 3000)


@contextmanager
def browser(width: int, *, javascript: bool = True) -> Iterator[Any]:
    """Start Chromium with a window of this width in CSS pixels."""
    options = ChromeOptions()
    options.binary_location = find_tool("chromium", FOLDER, "test-browser")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options, Service(find_tool("chromedriver", FOLDER, "test-browser")))
    try:
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        driver.quit()


def visible_rows(driver: Any) -> list[str]:
    rows = driver.execute_script(
        "return [...document.querySelectorAll('#images tbody tr')].filter(row => row.offsetHeight > 0)"
        ".map(row => row.cells[0].textContent + ' ' + row.cells[1].textContent)"
    )
    return [str(row) for row in rows]


def test_the_page_is_smaller_than_2_mib(page: Path) -> None:
    assert page.stat().st_size < 2 << 20


@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_opens_within_a_second_without_an_error_and_fits_the_width(device: str, page: Path) -> None:
    with browser(WIDTHS[device]) as driver:
        driver.get(page.as_uri())
        assert [] == driver.get_log("browser")
        assert _load_time(driver, page) < 1.0
        sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        content, window = driver.execute_script(sizes)
        assert content <= window
        assert 1 == len(
            driver.execute_script("return performance.getEntries().filter(e => e.entryType === 'navigation')")
        )
        assert [] == driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        _save_screenshots(driver, device)


def _load_time(driver: Any, page: Path) -> float:
    """Return the seconds of CPU time that the page's thread needs to open it, with an empty cache.

    Other processes of a busy machine do not change this time."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    before = _task_time(driver)
    driver.get(page.as_uri())
    return _task_time(driver) - before


def _task_time(driver: Any) -> float:
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(float(one["value"]) for one in metrics if one["name"] == "TaskDuration")


def _save_screenshots(driver: Any, device: str) -> None:
    folder = os.environ.get("MIRROR_TESTS_SCREENSHOTS")
    for number, heading in enumerate(driver.find_elements(By.CSS_SELECTOR, "h1, h2") if folder else ()):
        driver.execute_script("arguments[0].scrollIntoView()", heading)
        driver.save_screenshot(str(Path(str(folder)) / f"{device}-{number}.png"))


def test_hostile_names_are_shown_as_text_and_run_nothing(page: Path) -> None:
    with browser(WIDTHS["desktop"]) as driver:
        driver.get(page.as_uri())
        assert driver.execute_script("return window.hacked === undefined")
        text = driver.find_element(By.TAG_NAME, "main").get_attribute("textContent")
        assert [] == [name for name in HOSTILE if name not in text]
        assert 0 == driver.execute_script("return document.querySelectorAll('img, [onload], [onfocus]').length")
        assert 1 == driver.execute_script("return document.scripts.length")


def test_the_policy_of_the_page_blocks_other_scripts_and_all_requests(page: Path) -> None:
    with browser(WIDTHS["desktop"]) as driver:
        driver.get(page.as_uri())
        driver.execute_script(
            "const script = document.createElement('script'); script.textContent = 'window.hacked = 1';"
            "document.body.append(script);"
            "const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x';"
            "document.body.append(image);"
        )
        assert driver.execute_script("return window.hacked === undefined")
        blocked = [
            line["message"] for line in driver.get_log("browser") if "Content Security Policy" in line["message"]
        ]
        assert 2 == len(blocked)


def test_the_filter_shows_only_matching_images(page: Path) -> None:
    with browser(WIDTHS["desktop"]) as driver:
        driver.get(page.as_uri())
        assert IMAGES == len(visible_rows(driver))
        field = driver.find_element(By.ID, "repository")
        field.send_keys("TEAM-3/Service-15")
        rows = visible_rows(driver)
        assert IMAGES // 60 + 1 >= len(rows) >= IMAGES // 60
        assert [] == [row for row in rows if "quay.io/team-3/service-15:" not in row]
        assert f"{len(rows)} of {IMAGES} images" == driver.find_element(By.ID, "shown").text
        Select(driver.find_element(By.ID, "result")).select_by_visible_text("failed")
        failed = visible_rows(driver)
        assert [row for row in rows if row.startswith("failed ")] == failed
        assert failed
        field.clear()
        field.send_keys("no such repository")
        assert [] == visible_rows(driver)


def test_without_javascript_all_images_are_shown_and_there_is_no_filter(page: Path) -> None:
    with browser(WIDTHS["desktop"], javascript=False) as driver:
        driver.get(page.as_uri())
        assert not driver.find_element(By.ID, "filter").is_displayed()
        rows = driver.find_elements(By.CSS_SELECTOR, "#images tbody tr")
        assert (IMAGES, True) == (len(rows), rows[-1].is_displayed())
