"""What may happen to an update between the client's training and the exact sum: one step a file."""
