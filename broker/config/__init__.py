"""
The settings: one frozen `Config`, read once by `load_config`.

Secrets never stand in the configuration: it names the files they are read from.
"""

from broker.config.loading import load_config
from broker.config.settings import Config

__all__ = ["Config", "load_config"]
