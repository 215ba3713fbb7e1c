"""Fair comparisons and studies: which runs are needed, and what they say."""
