"""
Who calls: proven by the transport, never by what the caller says of itself.

Until callers are authenticated one by one, whoever can reach the listener is one principal; that is why the broker
listens on loopback and Unix sockets only. A Unix socket's caller is proven by the socket's permissions.
"""

from typing import Final

from broker.model import Caller

LOCAL_CALLER: Final = Caller("local", "loopback")
LOCAL_OPERATOR: Final = Caller("local-operator", "loopback")
