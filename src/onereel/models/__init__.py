"""Room `models`: the networks, one folder each; read its `__init__.py` first."""
