"""Training one model, running many, and keeping what they gave."""
