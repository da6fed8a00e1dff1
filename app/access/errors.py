"""Errors of access control. `app.api.errors` maps them to HTTP responses."""


class RateLimitExceeded(Exception):
    """A caller has made as many requests as a rate limit allows; the request was not processed."""

    def __init__(self, problem: str, *, limit: int, retry_after_seconds: int) -> None:
        super().__init__(problem)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds
