"""The command line: `crew-capture serve | run | runs | sweep | purge | keys | doctor | demo`."""

from app.cli.main import main

__all__ = ["main"]
