"""Signed manifests of docker's schema 1: JSON with its own signature inside (libtrust's pretty JWS)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

MEDIA_TYPE = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def signed(name: str, tag: str, layers: Sequence[str], seed: str = "") -> bytes:
    """Return a manifest of `layers` (digests, the base first), signed with a key made from `seed`; always the same
    bytes."""
    ids = [hashlib.sha256(f"{seed}{name}{number}{digest}".encode()).hexdigest() for number, digest in enumerate(layers)]
    history = []
    for number, image in enumerate(ids):
        v1 = {"id": image, "created": "2020-09-13T12:26:40Z", "os": "linux", "architecture": "amd64"}
        v1 |= {"parent": ids[number - 1]} if number else {}
        history.append({"v1Compatibility": json.dumps(v1)})
    document = {
        "schemaVersion": 1,
        "name": name,
        "tag": tag,
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest} for digest in reversed(layers)],
        "history": history[::-1],
    }
    return _sign(json.dumps(document, indent=3, separators=(",", ":  ")).encode(), seed)


def payload(body: bytes) -> bytes:
    """Return the signed bytes, whose digest is the manifest's."""
    protected = json.loads(_decode(json.loads(body)["signatures"][0]["protected"]))
    return body[: protected["formatLength"]] + _decode(protected["formatTail"])


def _sign(content: bytes, seed: str) -> bytes:
    kept, tail = content[:-2], content[-2:]  # the signatures are inserted before the closing brace
    protected = {"formatLength": len(kept), "formatTail": _encode(tail), "time": "2020-09-13T12:26:40Z"}
    head = _encode(json.dumps(protected).encode())
    number = int.from_bytes(hashlib.sha512(f"schema1 {seed}".encode()).digest()) % (_P256_ORDER - 1) + 1
    key = ec.derive_private_key(number, ec.SECP256R1())
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(f"{head}.{_encode(content)}".encode(), algorithm))
    signature = {
        "header": {"jwk": _jwk(key.public_key()), "alg": "ES256"},
        "signature": _encode(r.to_bytes(32) + s.to_bytes(32)),
        "protected": head,
    }
    block = json.dumps([signature], indent=3).replace("\n", "\n   ")
    return kept + b',\n   "signatures": ' + block.encode() + tail


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (_encode(value.to_bytes(32)) for value in (numbers.x, numbers.y))
    return {"crv": "P-256", "kid": _key_id(key), "kty": "EC", "x": x, "y": y}


def _key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return libtrust's fingerprint: 240 bits of the SHA-256 of the key, in base 32, in twelve groups of four."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_bytes(serialization.Encoding.DER, form)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[at : at + 4] for at in range(0, len(text), 4))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
