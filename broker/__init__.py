"""The credential broker: keeps agent identities and hands out ready-made authorization headers."""

__version__ = "0.1.0"
