"""The demo's network, scene and clip: how they are made."""
