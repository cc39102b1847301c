"""What a server is told when it starts.

In: flags or CRUMB_ variables. Out: ServerSettings. Refuses an address beyond loopback without keys,
unless that is asked for in so many words, and limits that are none.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from crumb.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server answers; its models are the pool's."""

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    no_auth: bool = False  # answer beyond loopback without a key
    hosts: tuple[str, ...] = ()  # further names that it is asked under
    origins: tuple[str, ...] = ()  # pages of others that may ask it
    body_bytes: int = 8 * MIB  # of a request
    body_seconds: float = 30.0  # until a request has arrived
    request_seconds: float | None = 3600.0  # until an answer has ended
    most_tokens: int | None = None  # of one reply
    silence_seconds: float | None = 15.0  # after which a stream says that it lives; None: never
    shutdown_seconds: float = 30.0  # for what still runs when it is told to end
    most_connections: int = 1024
    speculate: bool = True  # guess tokens where that pays; none changes
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.keys and not self.no_auth and not is_loopback(self.host):
            raise UsageError(
                "beyond this machine a server needs an API key",
                where=self.host,
                do="Give --api-key, or --no-auth to answer everybody",
            )
        for name in ("body_bytes", "body_seconds", "shutdown_seconds", "most_connections"):
            if not getattr(self, name) > 0:
                raise UsageError("a limit of the server is none", where=name, expected="above 0")
        if any(not key or key != key.strip() for key in self.keys):
            raise UsageError("an API key is empty or has spaces around it", where="api_key")


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
