"""One ACME authority: our account there, orders, revocation, its advice when to renew.

Owns: the order of RFC 8555, 7.3 to 7.6, and RFC 9773. Does not own: HTTP and nonces
(control.acme_wire), showing proofs (control.acme_challenges), which authority counts
(control.acme_issuer).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gatewayd.control.acme_challenges import Proofs
from gatewayd.control.acme_keys import (
    BadBindingKeyError,
    Key,
    bind,
    certificate_id,
    from_pem,
    key_authorization,
    leaf_der,
    make_key,
    request_for,
    to_pem,
)
from gatewayd.control.acme_store import AcmeStore
from gatewayd.control.acme_wire import AcmeError, Answer, Wire
from gatewayd.core.acme import Problem, read_problem
from gatewayd.core.certificate import AcmeCertificate

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.25
_POLL_FACTOR: Final = 1.5
_POLL_MAX_S: Final = 10.0
_POLL_ASKED_MAX_S: Final = 90.0  # longer than this no order is kept open


class ProofError(AcmeError):
    """One way to prove a name did not work, or is not offered; another one may."""


@dataclass(slots=True)
class _Account:
    key: Key
    url: str | None = None
    saved: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """When the authority wants a certificate to be renewed; Unix seconds."""

    start: float
    end: float
    ask_again: float | None  # seconds from now


class AcmeServer:
    def __init__(
        self, wire: Wire, settings: AcmeCertificate, store: AcmeStore, proofs: Proofs
    ) -> None:
        self._wire = wire
        self._settings = settings
        self._store = store
        self._proofs = proofs
        self._known: _Account | None = None
        self._entering = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<AcmeServer {self._wire.directory_url}>"

    async def aclose(self) -> None:
        await self._wire.aclose()

    # --- the account

    async def _account(self) -> _Account:
        async with self._entering:
            if self._known is None:
                self._known = await self._load_account()
            if self._known.url is None:
                self._known.url = await self._enter(self._known.key)
                self._known.saved = False
            if not self._known.saved:
                self._known.saved = await self._save_account(self._known)
            return self._known

    async def _load_account(self) -> _Account:
        url, kid = self._wire.directory_url, self._settings.eab_kid
        raw = await asyncio.to_thread(self._store.read_account, url, kid)
        if raw is not None:
            try:
                fields = json.loads(raw)
                return _Account(from_pem(fields["key"].encode()), fields["account"], saved=True)
            except (ValueError, KeyError, TypeError, AttributeError):
                _log.error("the account at %s cannot be read; a new one is made", url)
        account = _Account(make_key())
        # Before the authority knows it: an account whose key is lost serves nobody.
        await self._save_account(account)
        return account

    async def _save_account(self, account: _Account) -> bool:
        url, kid = self._wire.directory_url, self._settings.eab_kid
        fields = {"server": url, "account": account.url, "key": to_pem(account.key).decode()}
        try:
            await asyncio.to_thread(
                self._store.write_account, url, kid, json.dumps(fields).encode()
            )
        except OSError as error:
            _log.error("the account at %s cannot be saved: %s; it is kept in memory", url, error)
            return False
        return True

    async def _enter(self, key: Key) -> str:
        """Make the account, or find the one that this key has."""
        directory = await self._wire.directory()
        settings = self._settings
        meta = directory.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        ask: dict[str, Any] = {"termsOfServiceAgreed": True}
        if settings.email is not None:
            ask["contact"] = [f"mailto:{settings.email}"]
        url = await self._wire.url("newAccount")
        if settings.eab_kid is not None and settings.eab_hmac_key is not None:
            try:
                secret = settings.eab_hmac_key.reveal()
                ask["externalAccountBinding"] = bind(key, settings.eab_kid, secret, url)
            except BadBindingKeyError as error:
                raise AcmeError(str(error)) from None
        elif meta.get("externalAccountRequired") is True:
            problem = Problem("externalAccountRequired", "it makes no account without a binding")
            raise AcmeError(problem.sentence(), problem)
        try:
            answer = await self._wire.post(url, ask, key, None)
        except AcmeError as error:
            refusal = error.problem
            bound = settings.eab_kid is not None
            if not bound or refusal is None or refusal.kind not in ("malformed", "unauthorized"):
                raise
            raise AcmeError(
                "the authority makes no account: are `eab_kid` and `eab_hmac_key` as it handed "
                f"them out? (it says: {refusal.detail})",
                refusal,
            ) from None
        if answer.location is None:
            raise AcmeError("the authority did not say where the account is")
        _log.info(
            "account at %s: %s; its terms are agreed to: %s",
            *(self._wire.directory_url, answer.location, meta.get("termsOfService", "none")),
        )
        return answer.location

    async def _signed(self, url: str, payload: Mapping[str, Any] | None) -> Answer:
        account = await self._account()
        try:
            return await self._wire.post(url, payload, account.key, account.url)
        except AcmeError as error:
            if error.kind != "accountDoesNotExist":
                raise
        _log.warning("%s does not know our account any more", self._wire.directory_url)
        account.url = None  # the key stays; of several orders one enters again
        account = await self._account()
        return await self._wire.post(url, payload, account.key, account.url)

    # --- an order

    async def issue(self, name: str, kind: str, key: Key, replaces: bytes | None) -> bytes:
        """The chain for `name`, proven by `kind`. Bounded by whoever waits. AcmeError."""
        answer = await self._order(name, replaces)
        order, url = answer.table(), answer.location
        if url is None:
            raise AcmeError("the authority did not say where the order is")
        for authorization in _texts(order, "authorizations"):
            await self._authorize(authorization, kind)
        order = await self._until(url, "pending")
        if order.get("status") == "ready":
            await self._signed(_text(order, "finalize"), {"csr": request_for(name, key)})
            order = await self._until(url, "ready", "processing")
        if order.get("status") != "valid":
            problem = read_problem(order.get("error"))
            raise AcmeError(problem.sentence(), problem)
        return (await self._signed(_text(order, "certificate"), None)).body

    async def _order(self, name: str, replaces: bytes | None) -> Answer:
        ask: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name}]}
        url = await self._wire.url("newOrder")
        known = None if replaces is None else certificate_id(replaces)
        if known is not None and "renewalInfo" in await self._wire.directory():
            try:
                return await self._signed(url, {**ask, "replaces": known})
            except AcmeError as error:
                # It may name a certificate that the authority has forgotten, or replaced.
                if error.kind not in ("alreadyReplaced", "malformed", "unauthorized"):
                    raise
        return await self._signed(url, ask)

    async def _authorize(self, url: str, kind: str) -> None:
        found = (await self._signed(url, None)).table()
        if found.get("status") == "valid":
            return  # proven not long ago
        offered = {str(c.get("type")): c for c in _tables(found, "challenges")}
        challenge = offered.get(kind)
        if challenge is None:
            raise ProofError(f"the authority offers no {kind}, only {', '.join(sorted(offered))}")
        identifier = found.get("identifier")
        domain = _text(identifier if isinstance(identifier, Mapping) else {}, "value")
        token = _text(challenge, "token")
        account = await self._account()
        proof = key_authorization(token, account.key)
        hook = self._settings.dns_hook
        async with self._proofs.shown(kind, domain, token, proof, hook):
            await self._signed(_text(challenge, "url"), {})
            found = await self._until(url, "pending")
        if found.get("status") != "valid":
            faults = [c["error"] for c in _tables(found, "challenges") if c.get("error")]
            problem = read_problem(faults[0] if faults else None)
            raise ProofError(f"{kind}: {problem.sentence()}", problem)

    async def _until(self, url: str, *passing: str) -> dict[str, Any]:
        """Asks until the status is another one, as often as the authority wants."""
        wait = _POLL_S
        while True:
            answer = await self._signed(url, None)
            found = answer.table()
            if found.get("status") not in passing:
                return found
            if answer.retry_after is not None and answer.retry_after > _POLL_ASKED_MAX_S:
                text = f"the authority wants to be asked again in {answer.retry_after:.0f} s only"
                raise AcmeError(text, Problem("", text, 0, answer.retry_after))
            await asyncio.sleep(wait if answer.retry_after is None else answer.retry_after)
            wait = min(wait * _POLL_FACTOR, _POLL_MAX_S)

    # --- what is issued

    async def revoke(self, chain: bytes, key: Key, reason: int) -> None:
        """Signed by the certificate's own key, so that no account is needed (RFC 8555, 7.6)."""
        payload = {"certificate": leaf_der(chain), "reason": reason}
        try:
            await self._wire.post(await self._wire.url("revokeCert"), payload, key, None)
        except AcmeError as error:
            if error.kind != "alreadyRevoked":
                raise

    async def window(self, chain: bytes) -> Window | None:
        """RFC 9773, 4; None where the authority gives no such advice."""
        base, known = (await self._wire.directory()).get("renewalInfo"), certificate_id(chain)
        if not isinstance(base, str) or known is None:
            return None
        answer = await self._wire.get(f"{base.rstrip('/')}/{known}")
        found = answer.table().get("suggestedWindow")
        try:
            assert isinstance(found, Mapping)
            start, end = (datetime.fromisoformat(found[k]).timestamp() for k in ("start", "end"))
        except (AssertionError, KeyError, TypeError, ValueError):
            raise AcmeError("the authority's advice when to renew cannot be read") from None
        return Window(start, end, answer.retry_after)


def _text(table: Mapping[str, Any], key: str) -> str:
    found = table.get(key)
    if not isinstance(found, str):
        raise AcmeError(f"the authority left out `{key}`")
    return found


def _texts(table: Mapping[str, Any], key: str) -> list[str]:
    found = table.get(key)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _tables(table: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    found = table.get(key)
    yield from (
        each for each in (found if isinstance(found, list) else []) if isinstance(each, dict)
    )
