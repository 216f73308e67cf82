"""The command line: a file per noun; asks the node, knows nothing below it."""
