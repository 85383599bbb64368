"""The steps of a run: plan, read images, copy them in order, verify them, and record the results."""
