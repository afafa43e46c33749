"""What must not be shown: by the place it stands in, before anybody knows whether it is valid.

Owns: the names of secret keys. Does not own: `Secret` (core.secret).
"""

from __future__ import annotations

import re

_SECRET_PATH = re.compile(
    r"(^|\.)(token|sha256|eab_hmac_key)$"
    r"|^auth\.tokens(\[\d+\])?$"  # a token written where its table belongs
)
_SECRET_ARG = re.compile(r"(^|[_-])(key|token|secret|password)$")


def is_secret_arg(name: str) -> bool:
    """Whether a router's flag carries a secret (`api-key`)."""
    return bool(_SECRET_ARG.search(name))


def is_secret_path(path: str) -> bool:
    if _SECRET_PATH.search(path):
        return True
    _, args, name = path.rpartition(".args.")
    return bool(args) and is_secret_arg(name)
