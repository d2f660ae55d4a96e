"""Other libraries' names, signatures and results, computed by fastcam."""
