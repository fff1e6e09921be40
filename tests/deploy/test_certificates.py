"""Certificates and keys: what they are good for, and who may read them."""

import ipaddress
import stat

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from deploy.certificates import main, make_node_key, make_server_files


def read_certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_server_certificate_is_the_cas_and_names_the_server(tmp_path):
    files = make_server_files(tmp_path, ["fl.example.org", "10.0.0.5"])
    ca, server = read_certificate(files.ca), read_certificate(files.certificate)
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.5")]
    is_ca = [
        c.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for c in (ca, server)
    ]
    assert is_ca == [True, False]
    key = load_pem_private_key(files.key.read_bytes(), None)
    assert key.public_key() == server.public_key()


def test_two_deployments_do_not_trust_each_other(tmp_path):
    one, other = (make_server_files(tmp_path / name) for name in ("one", "other"))
    with pytest.raises(InvalidSignature):
        read_certificate(one.certificate).verify_directly_issued_by(read_certificate(other.ca))


def test_node_keys_are_of_the_curve_and_format_that_flower_takes(tmp_path):
    files = make_node_key(tmp_path, "clinic-a")
    private = load_ssh_private_key(files.private.read_bytes(), None)
    assert isinstance(private.curve, ec.SECP384R1)
    assert load_ssh_public_key(files.public.read_bytes()) == private.public_key()


def test_private_keys_are_their_owners_alone(tmp_path):
    server, node = make_server_files(tmp_path), make_node_key(tmp_path, "node")
    private = {server.key, node.private}
    assert {mode(path) for path in private} == {0o600}
    others = set(tmp_path.iterdir()) - private
    assert not any(b"PRIVATE" in path.read_bytes() for path in others)


def test_a_key_in_use_is_not_overwritten(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--name", "fl.example.org", "--node", "a", "b"]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"ca.crt", "server.crt", "server.key", "a", "a.pub", "b", "b.pub"}
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--node", "b"])
    assert "File exists" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"), [({"names": []}, "names was empty"), ({"days": 0}, "days was 0")]
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_server_files(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
