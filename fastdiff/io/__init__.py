"""Folders on disk, configurations and pictures. Imports the kernels' errors and nothing else of fastdiff."""
