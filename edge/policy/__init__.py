"""May they: policy expressions and their evaluation. Pure."""
