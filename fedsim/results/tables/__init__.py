"""The tables of a study on disk: their columns, their files, writing and reading."""
