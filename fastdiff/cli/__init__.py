"""The command line, one file per command. The commands import torch when they run, so that --help answers at once."""
