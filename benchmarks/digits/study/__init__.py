"""How good the maps of every method are, on scenes with several instances of one digit."""
