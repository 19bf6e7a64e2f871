"""Check learning rules for biological plausibility, by what they keep and compute in observed runs."""
