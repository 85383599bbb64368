"""`make demo`: the main job, done for real between two registries on this machine, with every claim checked."""
