"""Keys in PKCS#11 tokens. Importing this package loads nothing; opening a vault does."""
