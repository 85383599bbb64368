"""What earlier runs learned, in one SQLite file: hints that change the cost of a run, but not its result."""
