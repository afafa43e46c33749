"""Which key exchanges OpenSSL is told to take, beside what the machine says of TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import make_authority, write_pair

from gatewayd.net.tls_groups import configuration

POLICY = """
openssl_conf = start
[start]
providers = some
ssl_conf = tls
[some]
default = it
[it]
activate = 1
[tls]
system_default = policy
[policy]
Ciphersuites = TLS_CHACHA20_POLY1305_SHA256
Groups = P-521
"""
OTHER = (
    "openssl_conf = start\n[start]\nproviders = some\n[some]\ndefault = it\n[it]\nactivate = 1\n"
)

# In a process of its own: what OpenSSL is told, it keeps.
SCRIPT = """
import ssl, sys
from gatewayd.net.tls_groups import limit_groups

limit_groups()
server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
server.load_cert_chain(*sys.argv[1:])
print(",".join(c["name"] for c in server.get_ciphers() if c["name"].startswith("TLS_")))
client.check_hostname = False
for curve in ("secp521r1", "prime256v1", "secp384r1"):
    client.set_ecdh_curve(curve)
    to, fro = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.wrap_bio(fro, to, server_hostname="x").do_handshake()
    except ssl.SSLWantReadError:
        pass
    try:
        server.wrap_bio(to, fro, server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        print("taken")
    except ssl.SSLError as error:
        print(error.reason)
"""


ALL = "TLS_AES_256_GCM_SHA384,TLS_CHACHA20_POLY1305_SHA256,TLS_AES_128_GCM_SHA256"


def in_a_process(home: Path, text: str | None) -> tuple[list[str], str]:
    """What it prints, and what it logs, where the machine's configuration is this."""
    cert, key = write_pair(make_authority().pair("x"), home, "x")
    path = home / "machine.cnf"
    if text is not None:
        path.write_text(text)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, cert, key],
        env={**os.environ, "OPENSSL_CONF": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split(), run.stderr


@pytest.mark.parametrize(
    ("text", "suites"), [(POLICY, "TLS_CHACHA20_POLY1305_SHA256"), (OTHER, ALL), (None, ALL)]
)
def test_the_machines_own_configuration_stays(
    tmp_path: Path, text: str | None, suites: str
) -> None:
    said, logged = in_a_process(tmp_path, text)
    assert said == [suites, "NO_SUITABLE_KEY_SHARE", "taken", "taken"]
    assert logged == ""


def test_openssl_that_cannot_be_told_keeps_its_own(tmp_path: Path) -> None:
    said, logged = in_a_process(tmp_path, "[unclosed\n")
    assert said[1:] == ["taken", "taken", "taken"]
    assert "key exchanges of TLS are OpenSSL's defaults" in logged


def test_todays_hybrid_goes_first_where_there_is_one() -> None:
    assert "Groups = X25519:P-256:P-384\n" in configuration("/nowhere", (3, 0, 19, 0, 0))
    assert "Groups = X25519MLKEM768:X25519:P-256:P-384\n" in configuration("", (3, 5, 0, 0, 0))
