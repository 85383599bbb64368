"""The state: hints from earlier runs in an SQLite file. Hints change the cost of a run, but not its result."""
