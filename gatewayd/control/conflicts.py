"""What cannot be together: two services at a domain, replicas that do not reach each other.

Owns: the checks and their words. Does not own: when they are made (control.registry).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import Service

NO_INTERNAL_IP: Final = "PD disaggregation requires internal IP for all replicas."


class RefusedError(Exception):
    """A change that is not made; the text says why, and is meant for the caller."""


def check_peers(services: Iterable[Service]) -> None:
    """Replicas that meet each other have addresses that others can reach."""
    for service in services:
        apart = service.router is not None and service.router.pd_disaggregation
        if apart and any(replica.peer_host is None for replica in service.replicas):
            raise RefusedError(NO_INTERNAL_IP)


def check_entrypoints(entrypoints: Iterable[Entrypoint], services: Iterable[Service]) -> None:
    """A domain leads to a service or to models, not to both. Where a registered service came first
    it keeps the domain (`behind`), and this must not be asked."""
    taken = {domain for service in services for domain in service.domains}
    for entrypoint in entrypoints:
        if entrypoint.domain in taken:
            raise RefusedError(
                f"Domain name '{entrypoint.domain}' cannot be that of a service and of the models "
                f"of project {entrypoint.project}"
            )


def behind(entrypoint: Entrypoint, services: Iterable[Service]) -> Service | None:
    """The registered service that keeps an entrypoint's domain for as long as it is there.

    No reason to refuse the entrypoint: a server registers it with every run that has a model, and
    one run of an unlucky name would end them all.
    """
    return next((s for s in services if s.origin == "api" and entrypoint.domain in s.domains), None)


def of_file(services: Iterable[Service]) -> list[Service]:
    return [service for service in services if service.origin == "file"]


def check_domains(taken: Mapping[str, Service], new: Iterable[Service]) -> None:
    """A domain leads to one service."""
    owners = {domain: service.key for service in taken.values() for domain in service.domains}
    for service in new:
        for domain in service.domains:
            if owners.setdefault(domain, service.key) != service.key:
                raise RefusedError(f"Domain name '{domain}' is already taken by another service")
