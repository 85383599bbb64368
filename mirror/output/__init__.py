"""Output for users and machines: console, progress, log, report. Secrets are removed here."""
