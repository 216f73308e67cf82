"""Every token through its own module, and what goes wrong with it: `make test-tokens`."""
