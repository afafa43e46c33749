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
    """A domain leads to a service or to models, not to both."""
    taken = {domain for service in services for domain in service.domains}
    for entrypoint in entrypoints:
        if entrypoint.domain in taken:
            raise RefusedError(
                f"Domain name '{entrypoint.domain}' cannot be that of a service and of the models "
                f"of project {entrypoint.project}"
            )


def check_domains(taken: Mapping[str, Service], new: Iterable[Service]) -> None:
    """A domain leads to one service."""
    owners = {domain: service.key for service in taken.values() for domain in service.domains}
    for service in new:
        for domain in service.domains:
            if owners.setdefault(domain, service.key) != service.key:
                raise RefusedError(f"Domain name '{domain}' is already taken by another service")
