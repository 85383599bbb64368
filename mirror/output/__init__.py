"""What users and machines read: console, progress, log, report. Secrets are removed here."""
