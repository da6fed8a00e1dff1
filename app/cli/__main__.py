"""`python -m app.cli`: the same as `crew-capture`."""

from app.cli import main

main()
