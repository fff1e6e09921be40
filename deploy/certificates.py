"""What a deployment is trusted by: a CA, the SuperLink's certificate, a key for every node.

All keys are of the curve P-384, which is the one that Flower's node authentication takes. Private
keys are readable by their owner alone from the moment that they exist.

    python -m deploy.certificates --output secrets --name fl.example.org --node clinic-a clinic-b
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")
DAYS = 365
CA_NAME = "fedma-flwr CA"
PRIVATE, PUBLIC = 0o600, 0o644


@dataclass(frozen=True)
class ServerFiles:
    """Paths of the CA's certificate, and of the SuperLink's certificate and key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class NodeKey:
    """Paths of a node's private key and of the public key that is registered for it."""

    private: Path
    public: Path


def make_server_files(
    folder: Path, names: Sequence[str] = LOOPBACK, *, days: int = DAYS
) -> ServerFiles:
    """Make a CA and a certificate of it for the SuperLink, both new.

    The CA's own key is not kept: nobody can make another certificate that the nodes would trust.

    Parameters
    ----------
    folder : Path
        Gets ``ca.crt``, ``server.crt`` and ``server.key`` (PEM).
    names : sequence of str (default: ("localhost", "127.0.0.1"))
        Host names and IP addresses by which nodes and users reach the SuperLink.
    days : int (default: 365)
        How long both certificates hold.

    Raises
    ------
    ValueError
        If there is no name, or if `days` is less than 1.
    FileExistsError
        If one of the files is there already: it may be in use.
    """
    if not names:
        raise ValueError("names was empty; say by which names the SuperLink is reached")
    if days < 1:
        raise ValueError(f"days was {days}; it must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, server_key = _new_key(), _new_key()
    ca = _certificate(CA_NAME, ca_key, ca_key, days=days, extensions=_ca_extensions())
    extensions = _server_extensions(names, ca_key)
    server = _certificate(names[0], server_key, ca_key, days=days, extensions=extensions)
    files = ServerFiles(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    _write(files.key, _pem(server_key), PRIVATE)
    _write(files.ca, ca.public_bytes(Encoding.PEM), PUBLIC)
    _write(files.certificate, server.public_bytes(Encoding.PEM), PUBLIC)
    return files


def make_node_key(folder: Path, name: str) -> NodeKey:
    """Make a new key pair for a node, in OpenSSH's format: ``NAME`` and ``NAME.pub``.

    Raises
    ------
    FileExistsError
        If the node has a key already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _new_key()
    files = NodeKey(folder / name, folder / f"{name}.pub")
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(files.private, private, PRIVATE)
    _write(files.public, public + b"\n", PUBLIC)
    return files


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # the hosts' clocks may differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA384())


def _ca_extensions() -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(signs_certificates=True), True),
    ]


def _server_extensions(
    names: Sequence[str], ca_key: ec.EllipticCurvePrivateKey
) -> list[tuple[x509.ExtensionType, bool]]:
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(name) for name in names]), False),
        (authority, False),
    ]


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.certificates",
        description="Make a CA, the SuperLink's certificate, and a key for each node.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for all files")
    parser.add_argument(
        "--name",
        nargs="+",
        default=[],
        help="host names and IP addresses of the SuperLink, beside localhost and 127.0.0.1; "
        "without them only node keys are made",
    )
    parser.add_argument("--node", nargs="*", default=[], help="names of nodes that get a key")
    parser.add_argument("--days", type=int, default=DAYS, help="how long the certificates hold")
    arguments = parser.parse_args(argv)
    made: list[Path] = []
    try:
        if arguments.name:
            names = list(dict.fromkeys([*arguments.name, *LOOPBACK]))
            files = make_server_files(arguments.output, names, days=arguments.days)
            made += [files.ca, files.certificate, files.key]
        for name in arguments.node:
            key = make_node_key(arguments.output, name)
            made += [key.private, key.public]
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print("\n".join(map(str, made)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
