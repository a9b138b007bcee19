"""
Runs the cases of `cases/` against the drivers of `drivers/`: what `python -m tests.polyglot` does.

| module | is about |
|---|---|
| `toolchains` | which languages are asked for and can be built here |
| `cases` | reading cases, and refusing those that prove nothing |
| `expressions` | what cases expect, and what to show when it is not so |
| `processes` | starting programs, ending all of them, what `/proc` says of them |
| `driver` | the protocol with a driver |
| `brokers`, `forked_brokers` | broker processes, their metrics and audit log |
| `dev` | a broker as `make dev` gives it, for examples and benchmarks |
| `world` | what a case finds: brokers, emulator, identities, servers; and what it can do to them |
| `case_run` | one case, step by step |
| `lanes` | all cases of all languages, side by side |
| `matrix` | the results, in a terminal and in docs/conformance.md |
| `builds`, `examples`, `benchmarks`, `restarts` | what else is run for each language |
| `mutations` | defects of clients that must be seen |
"""
