"""The secrets of runs: in the memory of the process that accepted them, or encrypted in their rows.

Without SECRETS_KEY no secret leaves the memory. A run that another process claims, or this one
after a restart, then fails as `secrets_lost`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from app.runs.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAX_SECRETS: Final = 20
_MAX_CHARACTERS: Final = 10_000
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# As NIST SP 800-38D recommends for GCM.
_NONCE_BYTES: Final = 12

SECRETS_LIMITS: Final = (
    f"At most {_MAX_SECRETS}. A name has letters (a-z, A-Z), digits and underscores; "
    f"a value has at most {_MAX_CHARACTERS:,} characters."
)
"""The limits, for descriptions."""

NOT_STORED: Final = b""
"""In the row of a run whose secrets are only in memory, or that has ended."""


class SecretsLost(Exception):
    """The secrets of a run are gone, so that it can't be executed."""


class SecretVault:
    """The secrets of this process's runs.

    `keys` encrypt them in rows (AES-256-GCM): the first one does, and all decrypt. The id of the
    run is authenticated with them, so that a copy in another row is worth nothing. If processes
    share runs (`is_shared`), secrets need a key: another process may execute the run.
    """

    def __init__(self, keys: Sequence[bytes] = (), *, is_shared: bool = False) -> None:
        self._must_encrypt = is_shared and not keys
        self._ciphers = [_cipher(key) for key in keys]
        self._kept: dict[UUID, Mapping[str, str]] = {}

    def check(self, secrets: Mapping[str, str]) -> None:
        """Raise InvalidInput for secrets that are beyond the limits or can't reach their run."""
        check_secrets(secrets)
        if secrets and self._must_encrypt:
            problem = "other processes may execute the run, so that the service needs SECRETS_KEY"
            raise InvalidInput("secrets", problem)

    def keep(self, run_id: UUID, secrets: Mapping[str, str]) -> None:
        """Keep the secrets of a run that was accepted here, until `forget`."""
        self._kept[run_id] = secrets

    def forget(self, run_id: UUID) -> None:
        """Forget the secrets of a run that has ended, or that another process executes."""
        self._kept.pop(run_id, None)

    def encrypted(self, run_id: UUID, secrets: Mapping[str, str]) -> bytes:
        """The secrets as the run's row stores them; NOT_STORED without a key."""
        if not self._ciphers:
            return NOT_STORED
        nonce = os.urandom(_NONCE_BYTES)
        plain = msgspec.json.encode(secrets)
        return nonce + self._ciphers[0].encrypt(nonce, plain, run_id.bytes)

    def of(self, run_id: UUID, stored: bytes | None) -> Mapping[str, str]:
        """The secrets of a run with this in its row; None stands for a run without secrets.

        Raises SecretsLost.
        """
        if stored is None:
            return {}
        if (kept := self._kept.get(run_id)) is not None:
            return kept
        for cipher in self._ciphers if stored else ():
            if (plain := _decrypted(cipher, run_id, stored)) is not None:
                return msgspec.json.decode(plain, type=dict[str, str])
        raise SecretsLost(
            "the run's secrets are gone: they were in the memory of the process that accepted it; "
            "submit the run again"
            if not stored
            else "the run's secrets can't be decrypted with SECRETS_KEY; submit the run again"
        )


def _cipher(key: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - 6 MB

    return AESGCM(key)


def _decrypted(cipher: "AESGCM", run_id: UUID, stored: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - imported with the cipher

    try:
        return cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], run_id.bytes)
    except InvalidTag:
        return None


def check_secrets(secrets: Mapping[str, str]) -> None:
    """Raise InvalidInput for secrets beyond the limits. No message has a value."""
    if len(secrets) > _MAX_SECRETS:
        raise InvalidInput("secrets", f"{len(secrets)} secrets; at most {_MAX_SECRETS} are allowed")
    for name, value in secrets.items():
        if not _NAME.fullmatch(name):
            raise InvalidInput("secrets", f"a name is not allowed. {SECRETS_LIMITS}")
        if not value or len(value) > _MAX_CHARACTERS:
            problem = f"must have 1 to {_MAX_CHARACTERS:,} characters"
            raise InvalidInput(f"secrets.{name}", problem)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"secrets.{name}", "must be Unicode text") from None
