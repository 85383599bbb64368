"""The steps of a run: plan, read images, write them in the right order, verify them, and record the results."""
