"""Keys that name sites, and certificates that name the hub; made where they are used."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.core.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# Clocks of two machines may differ by this much before a fresh certificate is "not yet valid".
EARLY = datetime.timedelta(hours=1)


def _needed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError("keys need cryptography: pip install 'motet[secure]'") from None


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, both as PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """Who signs the certificates of one federation, and nobody else's."""

    certificate: Any
    key: Any

    @property
    def pem(self) -> bytes:
        """What the other parties need in order to trust it."""
        from cryptography.hazmat.primitives.serialization import Encoding

        found: bytes = self.certificate.public_bytes(Encoding.PEM)
        return found

    def issue(self, name: str, hosts: Iterable[str], days: int) -> Issued:
        """A certificate for a server that is reached under these names and addresses."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = _new_key()
        alternatives = x509.SubjectAlternativeName([_host(host) for host in hosts])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        made = (
            _builder(name, self.certificate.subject, key, days)
            .add_extension(alternatives, critical=False)
            .add_extension(usage, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(_own_id(key), critical=False)
            .add_extension(_issuer_id(self.key), critical=False)
            .sign(self.key, _hash())
        )
        return Issued(made.public_bytes(Encoding.PEM), _private_pem(key))


def new_authority(name: str, days: int) -> Authority:
    """A fresh authority; its key lives in memory alone unless it is written down."""
    _needed()
    from cryptography import x509

    key = _new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
    made = (
        _builder(name, subject, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(_own_id(key), critical=False)
        .sign(key, _hash())
    )
    return Authority(made, key)


def _builder(name: str, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _own_id(key: EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    from cryptography import x509

    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _issuer_id(key: EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    from cryptography import x509

    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _hash() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA384()


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def new_site_key(comment: str) -> tuple[bytes, bytes]:
    """(private, public) key of a site in OpenSSH's format, on the curve P-384."""
    _needed()
    from cryptography.hazmat.primitives import serialization as s

    key = _new_key()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    return private, public + f" {comment}\n".encode()


def pem_of_public(path: Path) -> bytes:
    """A public key as PEM, from its OpenSSH file; raises ConfigError for what is none."""
    _needed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s

    try:
        key = s.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the public key {path}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no public key in OpenSSH's format") from None
    return key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def write_private(path: Path, data: bytes) -> None:
    """Writes what nobody but its owner may read; raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never readable for others, not even for a moment.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and is not overwritten; remove it first") from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
