"""Tests with servers that not every machine has, and with large layers: `make test-old` and others."""
