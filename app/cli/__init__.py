"""The command line: `crew-capture serve | run | sweep | purge | keys | doctor | demo`."""

from app.cli.main import main

__all__ = ["main"]
