"""One file a paper: its question, its experiments, its claims."""

STUDIES = ("robustness_gap", "gan_grafting")
"""The studies by name; each is the module of that name, with its `STUDY`."""
