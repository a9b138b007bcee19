"""
`python -m tests.bench.launcher`: the broker as `credential-broker serve` runs it, with a switch to pause its upkeep.

It says on standard output what happens, a JSON object a line: `serving` when calls are taken, `upkeep_paused` when the
loops stand still after SIGUSR1. Everything a call passes through is the product's own.
"""
