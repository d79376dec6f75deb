"""Room `apps`: what people start. Parse, call a pipeline, report. Read `cli/main.py` first."""
