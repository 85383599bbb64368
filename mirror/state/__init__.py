"""What earlier runs learned, in one SQLite file: hints that change what a run costs, not its result."""
