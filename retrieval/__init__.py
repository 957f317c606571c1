"""Text to ranked documents: encoders, analyzers, collections on disk, fusion, training, the command line."""
