"""Room `apps/cli`: the command line. Read `main.py` first, then `generate.py`.

Each subcommand is a module of its own that is imported only when it runs. stdout carries data,
stderr carries talk.
"""
