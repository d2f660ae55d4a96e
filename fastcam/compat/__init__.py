"""Other libraries' names, signatures and answers, computed by fastcam."""
