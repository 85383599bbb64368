"""Values of the OCI world: references, digests, descriptors, manifests. No I/O."""
