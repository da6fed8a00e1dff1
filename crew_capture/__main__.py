"""`python -m crew_capture`: the same as `crew-capture`."""

from crew_capture.command import main

main()
