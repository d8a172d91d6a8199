"""Studies: a grid of configurations and seeds, run so that being killed loses nothing."""
