"""Where bytes lie: whole files, object storage, arrays computed once per node."""
