"""The commands: each reads its arguments, opens what it needs, and returns an exit code."""
