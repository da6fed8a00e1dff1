"""The errors of this package: one tree. No message contains a secret."""


class StorageError(Exception):
    """The root of all errors of this package."""


class InvalidKey(StorageError, ValueError):
    """The text can't be the name of an output, or a part of one."""

    def __init__(self, text: str, rule: str) -> None:
        super().__init__(f"not an output key: {text}: {rule}")


class OutputNotFound(StorageError):
    """All locations were read, and none holds the output."""

    def __init__(self, key: str, location: str) -> None:
        super().__init__(f"no output {key} in {location}")
        self.key = key
        self.location = location


class OutputUnavailable(StorageError):
    """A location can't be reached, so the output may or may not exist there."""

    def __init__(self, key: str, location: str, cause: str) -> None:
        super().__init__(f"output {key} can't be reached in {location}, try again: {cause}")
        self.key = key
        self.location = location
        self.cause = cause


class OutputConflict(StorageError):
    """The key holds another text already. That text stays."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"output {key} holds another text already: a key is written once, "
            "so use another filename or a later started_at"
        )
        self.key = key


class BufferFull(StorageError):
    """The location has no room for the output. Stored outputs stay readable."""

    def __init__(self, key: str, location: str, cause: str) -> None:
        super().__init__(f"no room for output {key} in {location}: {cause}")
        self.key = key
        self.location = location
        self.cause = cause


class LocationUnusable(StorageError):
    """The directory or bucket can't be used as a location in its present state."""

    def __init__(self, location: str, cause: str) -> None:
        super().__init__(f"{location} can't hold outputs: {cause}")
        self.location = location
        self.cause = cause


class ForeignLocation(StorageError):
    """The location holds the stamp of another installation."""

    def __init__(self, location: str) -> None:
        super().__init__(
            f"{location} belongs to another installation (another database): choose another "
            "location with TEMP_DIR, S3_PREFIX or OBSTORE_URL, or, if that database is gone for "
            "good, claim this one with TEMP_TAKE_OVER=yes"
        )
        self.location = location


class StoreClosed(StorageError):
    """The store is not started yet, or closed."""

    def __init__(self) -> None:
        super().__init__("the output store is not open: call it between start() and aclose()")
