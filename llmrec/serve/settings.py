"""What a server is told: where it listens, who may ask, and how much one request may cost."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr

from llmrec.config import Config
from llmrec.errors import InputError

API_KEY, ADMIN_KEY = "LLMREC_API_KEY", "LLMREC_ADMIN_KEY"
_SHORTEST_KEY = 16
MOST_IDS = 10_000
"""Item ids of any list in a request, whatever the limits are."""


class Limits(Config):
    """What one request may ask for, and how many may ask at once. Beyond: a 4xx that names the limit."""

    body_bytes: int = Field(default=2_000_000, ge=1)
    """Size of a request's body; larger ones are refused unread (413)."""
    history: int = Field(default=1_000, ge=1, le=MOST_IDS)
    """Items of a history. The prompt holds the card's window of them; the others are excluded from the answer."""
    items: int = Field(default=1_000, ge=1, le=MOST_IDS)
    """Items of `/v1/score` and of the lists `exclude` and `allow`."""
    k: int = Field(default=100, ge=1)
    """Recommendations of one list."""
    num_beams: int = Field(default=200, ge=1)
    """Width of a beam."""
    explanations: int = Field(default=3, ge=0)
    """Items of one list that may be explained; each costs a generated answer."""
    thought_tokens: int = Field(default=256, ge=1)
    """Tokens of the thought before a list."""
    new_tokens: int = Field(default=1024, ge=1)
    """Tokens of one generated answer."""
    connections: int = Field(default=512, ge=1)
    """Requests in the server at once; beyond: 429."""
    pending: int = Field(default=256, ge=1)
    """Jobs that wait for the model; beyond: 429."""
    streams: int = Field(default=16, ge=1)
    """Texts written at once; each holds a KV cache. More of them wait as pending jobs."""
    read_seconds: float = Field(default=10.0, gt=0)
    """Time for a body to arrive (408)."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Time for an answer, waiting included (504)."""
    shutdown_seconds: float = Field(default=30.0, gt=0)
    """Time for running requests to finish after a stop signal."""


class ServeSettings(Config):
    """A server's settings; `from_environment` adds the keys, which have no place on a command line."""

    name: str = "llmrec"
    """The model's name in `/v1/models` and in the requests of OpenAI clients."""
    host: str = "127.0.0.1"
    """Address to listen on; other machines reach the server only through one that is not loopback."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """0 takes a free port."""
    api_key: SecretStr | None = None
    """What clients send as ``Authorization: Bearer …``; needed unless the address is loopback."""
    admin_key: SecretStr | None = None
    """The same for `/admin/…`; None stands for the API key, and without either `/admin/…` is closed."""
    batch_size: int = Field(default=16, ge=1)
    """Lists searched together."""
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long an idle model waits for a second list to search with the first."""
    limits: Limits = Limits()

    @property
    def url(self) -> str:
        """Where clients on this machine find the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def require_key(self) -> None:
        """Refuse an address that other machines reach unless requests need a key.

        Raises:
            InputError: there is no key, or one too short to keep guesses out.
        """
        for name, key in ((API_KEY, self.api_key), (ADMIN_KEY, self.admin_key)):
            if key is not None and len(key.get_secret_value()) < _SHORTEST_KEY:
                raise InputError(
                    f"{name} has fewer than {_SHORTEST_KEY} characters and could be guessed.",
                    hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one',
                )
        if self.api_key is None and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} can be reached from other machines, and without a key anybody there may ask.",
                hint=f"set {API_KEY} (or --api-key-file), or keep --host 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(
    api_key_file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[SecretStr | None, SecretStr | None]:
    """The API key and the admin key, from the environment or the API key from a file.

    Raises:
        InputError: the file is unreadable or empty, or gives one key while the environment gives another.
    """
    api, admin = environment.get(API_KEY, "").strip(), environment.get(ADMIN_KEY, "").strip()
    if api_key_file is not None:
        try:
            found = api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The key file {api_key_file} cannot be read: {error}") from error
        if not found:
            raise InputError(f"The key file {api_key_file} is empty.", hint="write one line with the key")
        if api and api != found:
            raise InputError(f"{API_KEY} and {api_key_file} hold different keys.", hint="give one of them")
        api = found
    return SecretStr(api) if api else None, SecretStr(admin) if admin else None
