"""The command-line interface: the commands and their output files."""
