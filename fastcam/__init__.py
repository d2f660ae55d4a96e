"""Class activation maps for PyTorch at the price of inference."""
