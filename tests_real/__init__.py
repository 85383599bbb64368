"""Tests against servers that not every machine has, and with layers that take their time: `make test-old`."""
