"""A loopback backend that verifies what it gets, with code of its own, and misbehaves on demand.

It stands in for the real backend in tests and in `credential-broker dev`. To be a witness it must share nothing
with what it judges: no module here imports broker code that signs, seals, parses keys or stores, and the serving
program never imports this package.
"""

from broker.emulator.accounts import Account
from broker.emulator.backend import Backend, IssuedIdentity
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Client, ClientAuth
from broker.emulator.exchanges import Exchange
from broker.emulator.families import TokenPair
from broker.emulator.faults import Action, FaultRule
from broker.emulator.profiles import PROFILES, TaskAnswer
from broker.emulator.refusal import ErrorStyle
from broker.emulator.routing import Operation
from broker.emulator.server import EmulatorServer
from broker.emulator.settings import DEFAULT_PORT, EmulatorSettings, TokenFormat

__all__ = [
    "DEFAULT_CLIENT_ID",
    "DEFAULT_CLIENT_SECRET",
    "DEFAULT_PORT",
    "PROFILES",
    "Account",
    "Action",
    "Backend",
    "Client",
    "ClientAuth",
    "EmulatorServer",
    "EmulatorSettings",
    "ErrorStyle",
    "Exchange",
    "FaultRule",
    "IssuedIdentity",
    "Operation",
    "TaskAnswer",
    "TokenFormat",
    "TokenPair",
]
