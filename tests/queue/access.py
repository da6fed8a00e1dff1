"""What gives access to NATS servers: certificates of a new authority, and credentials files."""

import base64
import datetime
import ipaddress
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of its own, and a server's certificate for 127.0.0.1 that it signed.

    `authority` is what clients must trust.
    """

    authority: Path
    certificate: Path
    key: Path

    @property
    def server_options(self) -> Sequence[str]:
        """Makes `nats-server` accept TLS alone."""
        return ("--tls", f"--tlscert={self.certificate}", f"--tlskey={self.key}")


def new_authority(folder: Path) -> Authority:
    """Create an authority and a server's certificate in a folder."""
    key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    can_sign = x509.BasicConstraints(ca=True, path_length=None)
    authority = _certificate(name, name, key).add_extension(can_sign, critical=True)
    own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats")])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = _certificate(own_name, name, own_key).add_extension(addresses, critical=False)
    folder.mkdir(parents=True, exist_ok=True)
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")
    pem = serialization.Encoding.PEM
    made.authority.write_bytes(authority.sign(key, hashes.SHA256()).public_bytes(pem))
    made.certificate.write_bytes(own.sign(key, hashes.SHA256()).public_bytes(pem))
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    made.key.write_bytes(own_key.private_bytes(pem, pkcs8, clear))
    return made


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


class Accounts:
    """An operator with one account, whose users have credentials files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        operator = _new_keys(nkeys.PREFIX_BYTE_OPERATOR)
        system, self._account = (_new_keys(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
        unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        limits: dict[str, Any] = dict.fromkeys(unlimited, -1) | {"wildcards": True}
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        account = {"type": "account", "limits": limits, "default_permissions": {}}
        preloaded = [
            f"{_public(keys)}: {_token(keys, operator, claims)}"
            for keys, claims in ((self._account, account), (system, {"type": "account"}))
        ]
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "nats.conf"
        self._configuration.write_text(
            f"operator: {_token(operator, operator, {'type': 'operator'})}\n"
            f"system_account: {_public(system)}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {', '.join(preloaded)} }}\n"
        )

    @property
    def server_options(self) -> Sequence[str]:
        """Makes `nats-server` accept users of the account alone."""
        return ("-c", str(self._configuration))

    def credentials(self, name: str) -> Path:
        """The credentials file of a new user."""
        keys = _new_keys(nkeys.PREFIX_BYTE_USER)
        unlimited = {"subs": -1, "data": -1, "payload": -1}
        user = _token(keys, self._account, {"type": "user", "pub": {}, "sub": {}, **unlimited})
        path = self._folder / f"{name}.creds"
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{keys.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
        return path


def _new_keys(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(secrets.token_bytes(32), kind))


def _public(keys: nkeys.KeyPair) -> str:
    key: bytes = keys.public_key
    return key.decode()


def _token(subject: nkeys.KeyPair, issuer: nkeys.KeyPair, claims: Mapping[str, Any]) -> str:
    """A JSON web token as NATS has them."""
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {
        "jti": secrets.token_hex(16),
        "iat": int(datetime.datetime.now(datetime.UTC).timestamp()),
        "iss": _public(issuer),
        "name": "test",
        "sub": _public(subject),
        "nats": {"version": 2, **claims},
    }
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, body))
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
