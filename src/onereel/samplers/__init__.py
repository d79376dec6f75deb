"""Room `samplers`: schedules, guidance, the chunk plan and the chunk engine.

Read `plan.py` first (which calls are made, as plain data), then `engine.py` (who makes them).
Samplers know no text, files or models: they call a velocity function.
"""
