"""Bytes and values: the formats of protocol documents 01 and 03. Pure."""
