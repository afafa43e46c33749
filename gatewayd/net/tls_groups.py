"""Key exchanges of handshakes: those of the profile, which `ssl` cannot choose among.

Owns: telling OpenSSL. Does not own: the rest of the profile (net.tls).

By default OpenSSL up to 3.4 also takes finite fields of up to 8192 bits in TLS 1.3. A client that
offers nothing else costs a worker 115 ms in which no stream goes on, for a hello that it need not
even compute (CVE-2022-40735).
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import ssl
import sys
from typing import Final

_log = logging.getLogger(__name__)

_GROUPS: Final = "X25519:P-256:P-384"
_HYBRID: Final = "X25519MLKEM768"  # since OpenSSL 3.5, whose own default begins with it
_NAMED: Final = r"(?m)^[ \t]*{}[ \t]*=[ \t]*([\w.-]+)"
_FILE_MAX: Final = 1024 * 1024


def limit_groups() -> None:
    """For contexts that are made from now on, in this process. Where it is not possible (OpenSSL in
    another shape), OpenSSL's defaults stay, and a line of the log says so.

    It is the machine's own configuration of TLS, loaded once more with one line added.
    """
    try:
        # What `ssl` itself is linked with, and by none but documented functions.
        library = ctypes.CDLL(getattr(sys.modules["_ssl"], "__file__", None))
        find, load = library.CONF_get1_default_config_file, library.CONF_modules_load_file
    except (AttributeError, OSError) as error:
        _log.warning("key exchanges of TLS are OpenSSL's defaults: %s", error)
        return
    find.restype = ctypes.c_char_p
    load.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong)
    fd = os.memfd_create("openssl.cnf")
    try:
        path = os.fsdecode(find() or b"")
        os.write(fd, configuration(path, ssl.OPENSSL_VERSION_INFO).encode())
        if load(f"/proc/self/fd/{fd}".encode(), None, 0) <= 0:
            _log.warning("key exchanges of TLS are OpenSSL's defaults: it refuses to be told")
    finally:
        os.close(fd)


def configuration(path: str, version: tuple[int, ...]) -> str:
    """What the file at `path` says of TLS, if it is there, but for the groups (config(5ssl))."""
    said = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            said = file.read(_FILE_MAX)
    except OSError:
        pass
    module, default = _name("ssl_conf", said), _name("system_default", said)
    groups = f"{_HYBRID}:{_GROUPS}" if version >= (3, 5) else _GROUPS
    return (
        (f".include {path}\n" if said else "")
        + f"[default]\nopenssl_conf = gatewayd\n[gatewayd]\nssl_conf = {module}\n"
        + f"[{module}]\nsystem_default = {default}\n[{default}]\nGroups = {groups}\n"
    )


def _name(key: str, said: str) -> str:
    """Of the section that stands at a key; the last one counts."""
    found = re.findall(_NAMED.format(key), said)
    return str(found[-1]) if found else f"gatewayd_{key}"
