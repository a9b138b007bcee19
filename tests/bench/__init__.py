"""
The broker's figures: what a call costs, how many it withstands at once, what it touches, how fast it starts.

`python -m tests.bench --help` says how to run it and docs/performance.md how to read it. Nothing here is a timed test: a
noisy machine makes a run void, never red.
"""
