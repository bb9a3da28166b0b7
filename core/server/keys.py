"""API keys: where they come from, and how one is recognised. Only digests of them are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from core import envs
from core.errors import ConfigError
from core.server.options import ServerOptions

_KEY = re.compile(r"[!-~]{1,512}")


class KeyRing:
    """Keys as BLAKE2b digests (RFC 7693) under a key of this process's own, so that no copy of them is kept.

    They are numbered from 0, the administrators' after the clients'.
    """

    def __init__(self, clients: Sequence[str] = (), admins: Sequence[str] = ()) -> None:
        self._secret = secrets.token_bytes(32)
        self._digests = [self._digest(key) for key in (*clients, *admins)]
        self._num_clients = len(clients)

    @classmethod
    def of(cls, options: ServerOptions) -> KeyRing:
        """The keys of the options, of their file, and of the environment. Raises ConfigError."""
        return cls(_client_keys(options), _admin_keys(options))

    @property
    def has_clients(self) -> bool:
        """Whether clients need a key."""
        return self._num_clients > 0

    def is_admin(self, number: int) -> bool:
        """Whether the key is an administrator's."""
        return number >= self._num_clients

    def find(self, given: str) -> int | None:
        """The number of a key, None for one that is not here.

        Each is compared in constant time, whichever matches: the time taken tells nothing.
        """
        digest = self._digest(given)
        found = [number for number, own in enumerate(self._digests) if hmac.compare_digest(own, digest)]
        return found[0] if found else None

    def _digest(self, key: str) -> bytes:
        # What is no UTF-8 in a header arrives as surrogates.
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=32).digest()


def _client_keys(options: ServerOptions) -> list[str]:
    given = _checked("--api-key", options.api_key)
    if options.api_key_file is not None:
        given += _file_keys(options.api_key_file)
    return given or _checked("CORE_API_KEY", _split(envs.read().api_key))


def _admin_keys(options: ServerOptions) -> list[str]:
    return _checked("--admin-key", options.admin_key) or _checked("CORE_ADMIN_KEY", _split(envs.read().admin_key))


def _split(value: str | None) -> list[str]:
    return [key for key in (value or "").split(",") if key]


def _file_keys(path: str) -> list[str]:
    """A key a line; what begins with # is a comment. A file without a key would leave the server open."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--api-key-file", f"cannot read {path!r}: {error}") from error
    keys = _checked("--api-key-file", [line.strip() for line in lines if line.strip() and not line.startswith("#")])
    if not keys:
        raise ConfigError("--api-key-file", f"{path!r} holds no key; write one a line")
    return keys


def _checked(option: str, keys: Sequence[str]) -> list[str]:
    for number, key in enumerate(keys, start=1):
        if not _KEY.fullmatch(key):
            message = f"key {number} is not 1 to 512 printable ASCII characters without spaces, which a header can hold"
            raise ConfigError(option, message)
    return list(keys)
