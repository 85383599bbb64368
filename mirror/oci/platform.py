"""Parses the names of platforms in a configuration, and compares them with the platforms of images.

The form is that of containerd, `OS/ARCHITECTURE[/VARIANT]`, with an optional OS version: `OS(VERSION)/ARCHITECTURE`.
Sources: github.com/containerd/platforms, "Platform Specifiers" and "Normalization"; OCI image-spec v1.1,
image-index.md, "platform" and "Platform Variants".
"""

from __future__ import annotations

import re

from mirror.errors import ConfigError, printable
from mirror.util.structs import Struct, replace

# The values of Go's GOOS and GOARCH, which the image-spec prescribes, and `wasi`, which Docker uses for wasm images.
SYSTEMS = (
    *("aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "netbsd", "openbsd"),
    *("plan9", "solaris", "wasi", "wasip1", "windows", "zos"),
)
ARCHITECTURES = (
    *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le"),
    *("riscv64", "s390x", "sparc64", "wasm"),
)
# The variants of the other architectures are not checked.
VARIANTS = {
    "amd64": ("v1", "v2", "v3", "v4"),
    "arm": ("v5", "v6", "v7", "v8"),
    "arm64": ("v8", "v9", *(f"v8.{minor}" for minor in range(1, 10)), *(f"v9.{minor}" for minor in range(1, 8))),
}
_ALIASES = {
    "aarch64": ("arm64", ""),
    "armel": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "i386": ("386", ""),
    "x86-64": ("amd64", ""),
    "x86_64": ("amd64", ""),
}
# The variant of an image that states none.
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_FORM = re.compile(
    r"(?P<os>[a-z0-9]+)(?:\((?P<version>[A-Za-z0-9._-]{1,64})\))?/(?P<architecture>[a-z0-9_-]+)"
    r"(?:/(?P<variant>[a-z0-9._-]{1,32}))?"
)
_EXPECTED = "expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or windows(10.0.17763)/amd64"


class Platform(Struct, frozen=True):
    """A platform from an index, an image config or a configuration file. Values from an image are not validated."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        system = f"{self.os}({self.os_version})" if self.os and self.os_version else self.os
        return "/".join(part for part in (system, self.architecture, self.variant) if part) or "unknown"

    @property
    def is_known(self) -> bool:
        """Whether the operating system and the architecture are known.

        BuildKit gives attestation manifests the platform `unknown/unknown`."""
        return not {self.os, self.architecture} & {"", "unknown"}

    def normalize(self) -> Platform:
        """Return the platform of an image in a form that can be compared: without aliases, and with a variant."""
        system, architecture, variant = self.os.lower(), self.architecture.lower(), self.variant.lower()
        architecture, implied = _ALIASES.get(architecture, (architecture, ""))
        variant = implied or variant or _DEFAULT_VARIANTS.get(architecture, "")
        if architecture in _DEFAULT_VARIANTS and variant.isdigit():
            variant = f"v{variant}"
        return replace(self, os="darwin" if system == "macos" else system, architecture=architecture, variant=variant)

    def covers(self, other: Platform) -> bool:
        """Return whether this platform, from a configuration, includes `other`, the platform of an image.

        If this platform lacks a part, `other` may have any value for it. An OS version also covers the versions below
        it: 10.0.17763 covers 10.0.17763.6293."""
        actual = other.normalize()
        return (
            (self.os, self.architecture) == (actual.os, actual.architecture)
            and self.variant in ("", actual.variant)
            and (not self.os_version or f"{actual.os_version}.".startswith(f"{self.os_version}."))
        )


def parse_platform(text: str) -> Platform:
    """Parse the name of a platform in a configuration. Raises ConfigError, with a correction, if it is invalid."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise ConfigError(f"not a platform: {printable(text, 80)!r}; {_EXPECTED}")
    platform = Platform(form["os"], form["architecture"], form["variant"] or "", form["version"] or "")
    canonical = platform.normalize()
    if platform.os not in SYSTEMS or platform.architecture not in ARCHITECTURES:
        if canonical.os in SYSTEMS and canonical.architecture in ARCHITECTURES:
            implied = _ALIASES.get(platform.architecture, ("", ""))[1]
            instead = replace(canonical, variant=platform.variant or implied)
            raise ConfigError(f"{text!r} is an alias; write {str(instead)!r}")
        name, known = ("operating system", SYSTEMS) if platform.os not in SYSTEMS else ("architecture", ARCHITECTURES)
        value = platform.os if platform.os not in SYSTEMS else platform.architecture
        raise ConfigError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")
    variants = VARIANTS.get(platform.architecture, ())
    if platform.variant and variants and platform.variant not in variants:
        what = f"unknown variant {platform.variant!r} of {platform.architecture}"
        raise ConfigError(f"{what}; expected one of {', '.join(variants)}")
    return platform
