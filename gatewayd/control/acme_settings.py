"""Which authority, as the file and the registry API say it together.

Owns: who of them counts. Does not own: asking it (control.acme_certs, imported only when needed).
"""

from __future__ import annotations

from dataclasses import replace

from gatewayd.config.model import Config
from gatewayd.control.state import AcmeSettings
from gatewayd.core.acme import LETS_ENCRYPT
from gatewayd.core.certificate import AcmeCertificate


def acme_settings(config: Config, said: AcmeSettings | None) -> AcmeCertificate | None:
    """`said` came through `/api/config`: its server and binding count before the file's, and
    without a server the file's, or Let's Encrypt, as that call always meant. None: files only."""
    if not config.listen.https:
        return None
    file = config.certificate if isinstance(config.certificate, AcmeCertificate) else None
    if said is None:
        return file
    base = AcmeCertificate((LETS_ENCRYPT,)) if file is None else file
    if said.server is not None:
        # A binding is of one authority: the file's is not for this one.
        base = replace(base, servers=(said.server,), eab_kid=None, eab_hmac_key=None)
    if said.eab_kid and said.eab_hmac_key is not None:
        base = replace(base, eab_kid=said.eab_kid, eab_hmac_key=said.eab_hmac_key)
    return base
