"""An HTTP/1.1 client for registries: accepts only complete responses, limits every wait, follows no redirects."""
