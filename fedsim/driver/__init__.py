"""From a study to finished runs: its plan, its lock, its tuning, and where it runs."""
