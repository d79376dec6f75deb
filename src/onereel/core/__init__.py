"""Room `core`: errors, config loading, seeds, device and dtype, logging. Read `errors.py` first."""
