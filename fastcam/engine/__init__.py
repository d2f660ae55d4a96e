"""All that runs a user's network."""
