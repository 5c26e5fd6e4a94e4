"""What a run needs before round 1: features, views, noise, a synthetic set, the task."""
