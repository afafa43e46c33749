"""What is wrong with a certificate, for whoever loads a file.

Owns: asking without importing what a gateway without certificates has no need of.
Does not own: the answer (control.certificate_files).
"""

from __future__ import annotations

from gatewayd.config.rules import CertificateFacts
from gatewayd.core.model import FileSource


def check_certificate(source: FileSource) -> CertificateFacts:
    from gatewayd.control.certificate_files import check_certificate as check

    return check(source)
