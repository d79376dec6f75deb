"""Room `nn`: attention, rotary positions, time features. Read `attention.py` first.

Legend: B batch, N heads, L tokens, E head dim, T H W the token grid.
"""
