"""Other libraries' names, without those libraries."""
