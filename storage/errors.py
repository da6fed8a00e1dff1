"""Everything that can go wrong with stored outputs: one tree, no secrets in any message."""


class StorageError(Exception):
    """The root of all errors of this package."""


class InvalidKey(StorageError, ValueError):
    """A text that can't be, or be part of, the name of an output."""

    def __init__(self, text: str, rule: str) -> None:
        super().__init__(f"not an output key: {text}: {rule}")


class OutputNotFound(StorageError):
    """Every place was asked, and none holds the output."""

    def __init__(self, key: str, location: str) -> None:
        super().__init__(f"no output {key} in {location}")
        self.key = key
        self.location = location


class OutputUnavailable(StorageError):
    """A place could not be asked, so nothing is known of the output there."""

    def __init__(self, key: str, location: str, cause: str) -> None:
        super().__init__(f"output {key} can't be reached in {location}, try again: {cause}")
        self.key = key
        self.location = location
        self.cause = cause


class OutputConflict(StorageError):
    """Another text was stored under the key before; that text stays."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"output {key} holds another text already: a key is written once, "
            "so use another filename or a later started_at"
        )
        self.key = key


class BufferFull(StorageError):
    """The place has no room for the output; what it holds stays readable."""

    def __init__(self, key: str, location: str, cause: str) -> None:
        super().__init__(f"no room for output {key} in {location}: {cause}")
        self.key = key
        self.location = location
        self.cause = cause


class LocationUnusable(StorageError):
    """The directory or bucket can't serve as a location as it is."""

    def __init__(self, location: str, cause: str) -> None:
        super().__init__(f"{location} can't hold outputs: {cause}")
        self.location = location
        self.cause = cause


class LocationTaken(StorageError):
    """The location carries the stamp of another installation."""

    def __init__(self, location: str) -> None:
        super().__init__(
            f"{location} belongs to another installation (another database): choose another "
            "location with TEMP_DIR or S3_PREFIX, or, if that database is gone for good, "
            "take this one over with TEMP_TAKE_OVER=yes"
        )
        self.location = location


class StoreClosed(StorageError):
    """The store was not started yet, or was closed."""

    def __init__(self) -> None:
        super().__init__("the output store is not open: it takes calls from start() to aclose()")
