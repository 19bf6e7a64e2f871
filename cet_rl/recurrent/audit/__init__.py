"""The audit of learning rules: what they keep and do, observed from runs, and what a brain could do of it."""
