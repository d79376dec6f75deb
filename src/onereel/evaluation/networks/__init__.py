"""Room `evaluation/networks`: networks that metrics need and that are small enough to write out."""
