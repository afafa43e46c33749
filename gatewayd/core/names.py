"""Which host names a certificate stands for (RFC 6125, 6.4.3; RFC 9525).

Owns: exact names and wildcards of one label. Does not own: reading certificates (control).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def covers(names: Collection[str], domain: str) -> bool:
    """Both lower case. `*.example.com` covers `a.example.com`, and neither `example.com` nor
    `a.b.example.com`."""
    return domain in names or f"*.{domain.partition('.')[2]}" in names


def uncovered(names: Collection[str], domains: Iterable[str]) -> list[str]:
    return [domain for domain in domains if not covers(names, domain)]
