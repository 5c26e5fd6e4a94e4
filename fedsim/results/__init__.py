"""Tables of a study: writing them every round, reading them, statistics, figures and the report."""
