"""The configuration of a node: a text becomes frozen values, or all that is wrong with it. Pure."""
