"""Fair comparisons and studies: which runs are needed, and doing them."""
