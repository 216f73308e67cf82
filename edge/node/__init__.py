"""The node: storage, building everything, the control API, the process."""
