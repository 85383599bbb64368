"""An HTTP/1.1 client for registries. It accepts only complete responses and limits the duration of every wait."""
