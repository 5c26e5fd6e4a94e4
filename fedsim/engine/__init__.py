"""The round loop and what it needs: pure Python and torch, no Ray."""
