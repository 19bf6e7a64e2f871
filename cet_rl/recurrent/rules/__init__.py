"""Online learning rules, a class each."""
