"""Room `evaluation`: is the output right, and how good is it? Read `parity/__init__.py` first."""
