"""Directory trees: one archive each way for a first copy, afterwards only what changed."""
