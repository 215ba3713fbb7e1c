"""One file a paper: its question, its experiments, its claims."""
