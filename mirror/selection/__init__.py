"""Selection of repositories and tags, by locations, patterns and tag rules."""
