"""Values of the OCI specifications: references, digests, descriptors, manifests. No I/O."""
