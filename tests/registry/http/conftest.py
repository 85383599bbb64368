"""A certificate authority for one test."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme


@pytest.fixture
def certificates() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(certificates: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "own-ca.pem"
    certificates.cert_pem.write_to_path(str(path))
    return path
