"""The `fedsim` command: its commands, its arguments, and what a user sees."""
