"""Types from the OCI specifications: references, digests, descriptors and manifests. The package does no I/O."""
