"""Ray: actors, placement and sweeps. The only package that imports it."""
