"""The service as its environment sees it: the command, and functions for the code of crews.

The service itself is in the packages `app` and `storage`. An environment may have other packages of
these names, which belong to its user: `crew_capture.command` finds the service's.
"""

from crew_capture.secrets import SecretMissing, run_secret

__all__ = ["SecretMissing", "run_secret"]
