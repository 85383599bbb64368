"""The commands of `mirror`. Each takes its options, opens the stores that it needs, and returns an exit code."""
