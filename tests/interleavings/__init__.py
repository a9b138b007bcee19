"""
Every order in which operations of the broker can meet: one loop, one step at a time, chosen by a schedule.

An operation runs until it reaches the store, a backend, an issuer or the clock; there it stands still until it is
chosen. What lies between two such points is one step, and cannot be divided on the broker's one event loop.
"""
