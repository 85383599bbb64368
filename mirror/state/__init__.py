"""The state: hints from earlier runs, stored in one SQLite file. They change the cost of a run, but not its result."""
