"""Which repositories and tags are selected: locations, patterns, tag rules."""
