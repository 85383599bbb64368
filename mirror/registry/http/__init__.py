"""HTTP/1.1 as registries speak it, strictly: whole responses only, every wait with an end, no redirect of its own."""
