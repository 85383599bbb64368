"""Platforms: which texts name one, and which images they cover."""

from __future__ import annotations

import pytest

from mirror.errors import ConfigError
from mirror.oci.platform import Platform, parse_platform


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763")),
        ("windows(10.0.20348.2700)/arm64/v8", Platform("windows", "arm64", "v8", "10.0.20348.2700")),
        ("linux/ppc64le/power9", Platform("linux", "ppc64le", "power9")),
        ("wasi/wasm", Platform("wasi", "wasm")),
    ],
)
def test_a_platform_is_written_as_in_containerd(text: str, platform: Platform) -> None:
    assert platform == parse_platform(text)
    assert text == str(platform)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linux/amd65", "unknown architecture 'amd65'; expected one of 386, amd64, arm,"),
        ("linnux/amd64", "unknown operating system 'linnux'; expected one of aix, android, darwin,"),
        ("linux/amd64/v9", "unknown variant 'v9' of amd64; expected one of v1, v2, v3, v4"),
        ("linux/arm/7", "unknown variant '7' of arm; expected one of v5, v6, v7, v8"),
        ("linux/aarch64", "'linux/aarch64' is an alias; write 'linux/arm64'"),
        ("linux/x86_64", "write 'linux/amd64'"),
        ("linux/armhf", "write 'linux/arm/v7'"),
        ("macos/arm64", "write 'darwin/arm64'"),
        ("windows", "expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or windows(10.0.17763)/amd64"),
        ("Linux/amd64", "not a platform: 'Linux/amd64'"),
        ("linux/amd64/", "not a platform"),
        ("linux/amd64/v1/x", "not a platform"),
        ("/amd64", "not a platform"),
        ("linux/*", "not a platform"),
        ("linux()/amd64", "not a platform"),
        ("windows(10.0+win32k)/amd64", "not a platform"),
        ("linux/amd64\n", "not a platform: 'linux/amd64"),
        ("unknown/unknown", "unknown operating system 'unknown'"),
        ("", "not a platform"),
    ],
)
def test_other_texts_are_errors_that_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_platform(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "image", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64"), True),
        ("linux/amd64", Platform("Linux", "AMD64"), True),
        ("linux/amd64", Platform("linux", "x86_64"), True),
        ("linux/amd64", Platform("linux", "386"), False),
        ("linux/amd64", Platform("windows", "amd64"), False),
        ("linux/arm", Platform("linux", "arm", "v5"), True),
        ("linux/arm/v7", Platform("linux", "arm", "v6"), False),
        ("linux/arm/v7", Platform("linux", "arm"), True),
        ("linux/arm/v6", Platform("linux", "arm"), False),
        ("linux/arm64", Platform("linux", "arm64", "v8"), True),
        ("linux/arm64/v8", Platform("linux", "arm64"), True),
        ("linux/amd64/v3", Platform("linux", "amd64"), False),
        ("windows/amd64", Platform("windows", "amd64", "", "10.0.17763.6293"), True),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763.6293"), True),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763"), True),
        ("windows(10.0.1776)/amd64", Platform("windows", "amd64", "", "10.0.17763"), False),
        ("windows(10.0.17763.6293)/amd64", Platform("windows", "amd64", "", "10.0.17763"), False),
        ("linux/amd64", Platform(), False),
    ],
    ids=str,
)
def test_a_platform_covers_the_images_that_have_all_of_its_parts(wanted: str, image: Platform, expected: bool) -> None:
    assert expected == parse_platform(wanted).covers(image)


def test_a_name_cannot_be_forged_by_a_version() -> None:
    assert "unknown" == str(Platform(os_version="1"))
    assert not Platform("unknown", "unknown").is_known
    assert not Platform("linux").is_known
