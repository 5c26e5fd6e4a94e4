"""Which client holds which training sample."""
