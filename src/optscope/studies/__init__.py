"""One file a paper: its question, its experiments, its claims."""

STUDIES = ("robustness_gap", "restrained_instability", "weight_normalization", "marginal_momentum",
           "gan_grafting")
"""The studies by name; each is the module of that name, with its `STUDY`."""
