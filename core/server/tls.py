"""TLS by the operator's certificate, and certificates of clients where they must show one."""

from __future__ import annotations

import ssl

from core.errors import ConfigError
from core.server.options import ServerOptions


def ssl_context(options: ServerOptions) -> ssl.SSLContext | None:
    """TLS 1.2 or newer as Python's defaults have it; None where there is no certificate. Raises ConfigError."""
    if options.ssl_certfile is None:
        for flag, value in (("--ssl-keyfile", options.ssl_keyfile), ("--ssl-ca-certs", options.ssl_ca_certs)):
            if value is not None:
                raise ConfigError(flag, "it needs --ssl-certfile, the server's own certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An empty password: a key that has one is refused, where OpenSSL would ask the terminal.
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        message = f"cannot use {options.ssl_certfile!r} with {options.ssl_keyfile or 'the key in it'!r}: {error}"
        raise ConfigError("--ssl-certfile", message) from error
    if options.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(options.ssl_ca_certs)
        except OSError as error:
            raise ConfigError("--ssl-ca-certs", f"cannot use {options.ssl_ca_certs!r}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
