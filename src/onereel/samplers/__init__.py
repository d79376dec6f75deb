"""Room `samplers`: schedules, guidance, the chunk plan and the chunk engine; flow matching.

Read `plan.py` first (which calls are made, as plain data), then `engine.py` (who makes them).
`flow_match.py` samples whole videos over noise levels, `segments.py` long ones piece by piece.
Samplers know no text, files or models: they call a velocity function.
"""
