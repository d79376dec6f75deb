"""Room `evaluation/report`: results as JSON, side by side and as a page. Read `result.py`."""
