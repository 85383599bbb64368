"""`make demo`: three syncs between registries on this machine, with checks of the results."""
