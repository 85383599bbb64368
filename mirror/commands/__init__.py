"""The commands. Each command takes its options, opens the stores that it needs, and returns an exit code."""
