"""Against a live stock `ockam`. Where none is installed, all of this is skipped, loudly."""
