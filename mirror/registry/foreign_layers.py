"""Reads foreign layers from the URLs in their descriptors. Source: OCI image-spec v1.1, descriptor.md, `urls`.

The author of the image chooses the URLs, so they are not trusted (docs/trust.md): only https is used, no credentials
are sent, and internal addresses are refused. The caller verifies size and digest.
"""

from __future__ import annotations

from mirror.errors import AuthError, Cancelled, MirrorError, NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.registry.blobs import BlobStream, open_blob
from mirror.registry.session import Session
from mirror.util.cancellation import Work

MAX_URLS = 10  # URLs of one layer that are tried


def open_foreign_layer(
    session: Session, repository: str, layer: Descriptor, missing: NotFound, work: Work, *, offset: int
) -> BlobStream:
    """Open a foreign layer that the registry does not have, from the first of its URLs that provides it.

    missing: the registry's error response. If no URL provides the layer, raises the error of one URL. A temporary error
    is preferred, then Refused for a URL that is unsafe or provides different content."""
    errors: list[MirrorError] = []
    for text in layer.urls[:MAX_URLS]:
        try:
            url = session.url_policy.check_layer_url(text)
            return open_blob(session, repository, layer, (), work, offset=offset, url=url)
        except Cancelled:
            raise
        except MirrorError as error:
            if isinstance(error, AuthError):
                error.retryable = False  # a retry does not get a new signature for the URL of a layer
            errors.append(error)
    cause = max(errors, key=lambda one: (one.retryable, isinstance(one, Refused)))
    what = f"{session.settings.host}/{repository} does not have the foreign layer {layer.digest}, and {cause.what}"
    raise cause.with_text(what) from missing
