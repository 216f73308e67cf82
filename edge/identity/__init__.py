"""Who is speaking: histories, attestations, credentials. Pure."""
