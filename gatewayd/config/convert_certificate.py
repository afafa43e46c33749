"""Who is served by HTTPS, and with which certificate.

Owns: the rules between `certificate`, `listen.https` and the keys of services. Does not own:
reading certificates (control; the answer comes in by `CheckCertificate`).
"""

from __future__ import annotations

from collections.abc import Iterable

from gatewayd.config.model import ListenAddress
from gatewayd.config.rules import CheckCertificate, Loc, Rules
from gatewayd.config.schema import GatewayFile
from gatewayd.config.schema_certificate import (
    AcmeTable,
    FileCertificateTable,
    HstsTable,
    LetsEncryptTable,
    LiveFolderTable,
)
from gatewayd.config.schema_service import ServiceTable
from gatewayd.config.values import parse_listen_address
from gatewayd.core.acme import LETS_ENCRYPT
from gatewayd.core.certificate import (
    AcmeCertificate,
    CertificateSource,
    FileCertificate,
    LiveFolder,
)
from gatewayd.core.model import Hsts
from gatewayd.core.names import uncovered

_PORT = "0.0.0.0:8443"


class Https:
    """Of one file. `certificate` is the gateway's own, `listen` where HTTPS is served."""

    def __init__(self, raw: GatewayFile, rules: Rules, check: CheckCertificate | None) -> None:
        self._rules = rules
        self._check = check
        self._default: Loc | None = None
        loc: Loc = ("certificate",)
        self.certificate = self._source(raw.certificate, loc)
        # Names that are covered, as far as they are known: None is any.
        self._names = self._names_of(self.certificate, loc)
        some = raw.certificate is not None or any(s.certificate for s in raw.services)
        at = raw.listen.https
        if at is None:
            at = [parse_listen_address(_PORT)] if some else []
        if at and not some and rules.known("certificate") and rules.known("services"):
            rules.broken(
                ("listen", "https"), "no certificate to serve here", "add `certificate` at the top"
            )
        self.listen: tuple[ListenAddress, ...] = tuple(at)

    def own(self, table: ServiceTable, domains: Iterable[str], loc: Loc) -> FileCertificate | None:
        """A service's own certificate, which has to be for its domains."""
        at = (*loc, "certificate")
        source = self._source(table.certificate, at)
        names = self._names_of(source, at)
        if isinstance(source, FileCertificate) and names is not None:
            for domain in uncovered(names, domains):
                self._rules.broken(
                    (*at, "cert"), f"is for {_listed(names)}, and not for `{domain}`"
                )
        return source if isinstance(source, FileCertificate) else None

    def wanted(
        self, https: bool | None, domains: tuple[str, ...], loc: Loc, *, own: bool = False
    ) -> bool:
        """`https` of a service: None is auto, wherever a certificate is there for its domains."""
        covered = own or (
            self.certificate is not None
            and (self._names is None or not uncovered(self._names, domains))
        )
        if https is None:
            return covered and bool(self.listen)
        if https and not self.listen and self._rules.known("listen", "https"):
            self._rules.broken(
                (*loc, "https"), "HTTPS is served nowhere", "set `listen.https` and `certificate`"
            )
        elif https and not covered and self._rules.known("certificate"):
            missing = uncovered(self._names or (), domains) or domains
            self._rules.broken((*loc, "https"), f"no certificate is for `{missing[0]}`")
        return https

    def _source(self, table: object, loc: Loc) -> CertificateSource | None:
        match table:
            case None:
                return None
            case FileCertificateTable():
                if table.default and self._default is not None:
                    there = self._rules.path(*self._default)
                    self._rules.broken((*loc, "default"), f"the default is {there} already")
                self._default = loc if table.default else self._default
                return FileCertificate(table.cert, table.key, table.default)
            case LiveFolderTable():
                return LiveFolder(table.dir)
            case AcmeTable():
                return _acme(table, tuple(table.server), table.ca_file)
            case LetsEncryptTable():
                return _acme(table, (LETS_ENCRYPT,), None)
            case "lets-encrypt":
                return AcmeCertificate((LETS_ENCRYPT,))
        return None  # a type that was refused

    def _names_of(self, source: CertificateSource | None, loc: Loc) -> frozenset[str] | None:
        if source is None or self._check is None:
            return None
        facts = self._check(source)
        for key, fault in facts.faults:
            self._rules.broken((*loc, key), fault)
        if facts.faults or isinstance(source, AcmeCertificate):
            return None
        return facts.names


def _acme(
    table: LetsEncryptTable, servers: tuple[str, ...], ca_file: str | None
) -> AcmeCertificate:
    return AcmeCertificate(
        servers,
        ca_file,
        table.email,
        table.eab_kid,
        table.eab_hmac_key,
        tuple(dict.fromkeys(table.challenges)),
        table.dns_hook,
        tuple(dict.fromkeys(table.names)),
    )


def convert_hsts(entry: float | HstsTable | None) -> Hsts | None:
    match entry:
        case None:
            return None
        case HstsTable():
            return Hsts(int(entry.max_age), entry.include_subdomains, entry.preload)
    return Hsts(int(entry))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "no host"
