"""The fast mode: a copy of a network that takes less time below the target layer."""
