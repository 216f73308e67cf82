"""Key stores. Importable alone; knows keys, and nothing of Ockam."""
