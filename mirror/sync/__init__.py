"""What a run does: plan, read images, copy them in order, verify them, record results."""
