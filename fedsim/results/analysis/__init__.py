"""From tables to findings: named runs, paired differences, tests, summaries."""
