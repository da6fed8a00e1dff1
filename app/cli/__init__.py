"""The command line, `crew-capture`; `app.cli.main` lists its commands."""

from app.cli.main import main

__all__ = ["main"]
