"""Output for users and machines: console, progress, log, report. Secrets are removed from all of it."""
