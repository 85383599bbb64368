"""Keys and signatures in cosign's formats, made for tests."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.images import EMPTY, OCI_CONFIG, OCI_MANIFEST, Graph, Made, oddly, tag_of

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}


_keys: dict[tuple[str, str], SigningKey] = {}


class SigningKey:
    """A private key. kind: `p256`, `p384`, `p521`, `rsa` or `ed25519`."""

    def __init__(self, kind: str = "p256") -> None:
        self._key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
        if kind == "rsa":
            self._key = rsa.generate_private_key(65537, 2048)
        elif kind == "ed25519":
            self._key = ed25519.Ed25519PrivateKey.generate()
        else:
            self._key = ec.generate_private_key(_CURVES[kind])

    @property
    def pem(self) -> bytes:
        """The public key, as cosign.pub has it."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes, algorithm: HashAlgorithm | None = None) -> bytes:
        algorithm = algorithm or SHA256()
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), algorithm)
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        return self._key.sign(message, ec.ECDSA(algorithm))

    def sign_text(self, message: bytes) -> str:
        """Return a signature in base64."""
        return base64.b64encode(self.sign(message)).decode()


def signing_key(name: str = "ours", kind: str = "p256") -> SigningKey:
    """Return a key, the same for the same name and kind in all tests of a process."""
    if (name, kind) not in _keys:
        _keys[name, kind] = SigningKey(kind)
    return _keys[name, kind]


def simple_payload(digest: str, *, kind: str = "cosign container image signature", pad: int = 0) -> bytes:
    """Return the payload that cosign signs. pad: the number of bytes of an annotation."""
    critical = {
        "identity": {"docker-reference": "registry.example.com/app"},
        "image": {"docker-manifest-digest": digest},
        "type": kind,
    }
    return json.dumps({"critical": critical, "optional": {"pad": "x" * pad} if pad else None}).encode()


def add_signature(graph: Graph, image: Made, *signed: tuple[bytes, str]) -> Made:
    """Add the manifest of signatures under cosign's tag. signed: payloads, each with its signature in base64."""
    layers = [
        graph.blob(payload, SIMPLE_SIGNING).json(annotations={ANNOTATION: signature}) for payload, signature in signed
    ]
    config = graph.blob(b'{"rootfs":{"type":"layers","diff_ids":[]}}', OCI_CONFIG)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.json(), "layers": layers}
    return graph.raw(oddly(document), OCI_MANIFEST, f"{tag_of(image)}.sig")


def sign(graph: Graph, image: Made, key: SigningKey | None = None) -> Made:
    """Sign an image as cosign 2 does."""
    payload = simple_payload(image.digest)
    return add_signature(graph, image, (payload, (key or signing_key()).sign_text(payload)))


def statement(digest: str, *, predicate: str = SIGN_PREDICATE, kind: str = "https://in-toto.io/Statement/v1") -> bytes:
    """Return the statement that cosign 3 signs."""
    algorithm, _, encoded = digest.partition(":")
    subject = [{"name": "", "digest": {algorithm: encoded}}]
    return json.dumps({"_type": kind, "subject": subject, "predicateType": predicate, "predicate": {}}).encode()


def bundle(text: bytes, key: SigningKey | None = None, *, kind: str = "application/vnd.in-toto+json") -> dict[str, Any]:
    """Return a bundle with a signed text. The text that is signed is written out as DSSE defines it."""
    message = b"DSSEv1 " + str(len(kind)).encode() + b" " + kind.encode() + b" " + str(len(text)).encode() + b" " + text
    envelope = {
        "payload": base64.b64encode(text).decode(),
        "payloadType": kind,
        "signatures": [{"sig": (key or signing_key()).sign_text(message), "keyid": ""}],
    }
    material = {"publicKey": {"hint": ""}, "tlogEntries": []}
    return {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}


def add_bundle(graph: Graph, image: Made, document: Mapping[str, Any], *, listed: bool = True) -> Made:
    """Add a bundle as a referrer of an image. listed: in the index under the referrers tag."""
    layer = graph.blob(json.dumps(document).encode(), BUNDLE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": BUNDLE,
        "config": graph.blob(b"{}", EMPTY).json(),
        "layers": [layer.json()],
        "subject": image.bare(),
    }
    made = graph.raw(oddly(manifest), OCI_MANIFEST, artifactType=BUNDLE)
    if listed:
        graph.index(tag_of(image), children=[made])
    return made
