"""What is wrong with a certificate, for whoever loads a file.

Owns: asking without importing what a gateway without certificates has no need of.
Does not own: the answer (control.certificate_files).
"""

from __future__ import annotations

import os
import ssl

from gatewayd.config.rules import CertificateFacts
from gatewayd.core.certificate import AcmeCertificate, CertificateSource


def check_certificate(source: CertificateSource) -> CertificateFacts:
    if isinstance(source, AcmeCertificate):
        return _check_authority(source)
    from gatewayd.control.certificate_files import check_certificate as check

    return check(source)


def _check_authority(source: AcmeCertificate) -> CertificateFacts:
    """What can be seen without asking it. Its names are not known before."""
    faults = []
    if source.ca_file is not None:
        try:
            ssl.create_default_context(cafile=source.ca_file)
        except ssl.SSLError:
            faults.append(("ca_file", f"{source.ca_file} holds no certificate in PEM"))
        except OSError as error:
            faults.append(("ca_file", f"{source.ca_file} cannot be read: {error.strerror}"))
    hook = source.dns_hook
    if hook is not None and not (os.path.isfile(hook) and os.access(hook, os.X_OK)):
        faults.append(("dns_hook", f"{hook} is no program that can be run"))
    return CertificateFacts(frozenset(), tuple(faults))
