"""TLS, from files that may be replaced while a worker runs."""

import logging
import os
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from consentgate.errors import ConfigError

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificates and keys are, in PEM; what is not named is not used."""

    authorities: str | None = None  # None: those that the system trusts
    authorities_setting: str = "ssl.ca.location"
    certificate: str | None = None
    key: str | None = None  # None: in the file of the certificate
    password: str | None = field(default=None, repr=False)
    check_hostname: bool = True

    def load(self) -> ssl.SSLContext:
        """A context made of the files as they are now.

        Raises:
            ConfigError: naming the setting of the file that cannot be used, and why.
        """
        try:
            context = ssl.create_default_context(cafile=self.authorities)
        except OSError as error:
            why = _reason(error, "it holds no certificate in PEM that can be read")
            setting = self.authorities_setting
            raise ConfigError(f"kafka.{setting}: cannot be loaded: {why}") from None
        if self.certificate is not None:
            try:
                # Without any password at all, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.certificate, self.key, self.password or "")
            except OSError:
                setting, why = self._fault()
                raise ConfigError(f"kafka.{setting}: cannot be loaded: {why}") from None
        context.check_hostname = self.check_hostname
        return context

    def stamp(self) -> _Stamp:
        """What changes when a file is written or replaced, by a link of its path, too."""
        return tuple(map(_stamp, (self.authorities, self.certificate, self.key)))

    def expired_at(self) -> datetime | None:
        """When our own certificate expired; None if it has not, or if that cannot be told."""
        try:
            expires = x509.load_pem_x509_certificate(
                Path(self.certificate or "").read_bytes()
            ).not_valid_after_utc
        except (OSError, ValueError):
            return None
        return expires if expires <= datetime.now(UTC) else None

    def _fault(self) -> tuple[str, str]:
        """Setting and problem, where certificate and key cannot be used; OpenSSL hardly tells."""
        setting, why = "ssl.certificate.location", "it holds no certificate in PEM"
        try:
            certificate = x509.load_pem_x509_certificate(Path(self.certificate or "").read_bytes())
            setting, why = "ssl.key.location", "there is no private key in PEM"
            data = Path(self.key or self.certificate or "").read_bytes()
            password = None
            if b"ENCRYPTED" in data:
                setting, why = "ssl.key.password", "it is not the password of the key"
                password = (self.password or "").encode()
            key = load_pem_private_key(data, password)
        except OSError as error:
            return setting, _reason(error, why)
        except (ValueError, TypeError):
            return setting, why
        if key.public_key() != certificate.public_key():
            return "ssl.key.location", "the key is not that of the certificate"
        return "ssl.certificate.location", "OpenSSL refuses it"


class ReloadingContext(ssl.SSLContext):
    """Opens each connection with the files as they are by then.

    A file that cannot be used does not take the others' place: then the last good ones are used on,
    and the log says so.
    """

    def __new__(cls, _: TlsFiles) -> Self:  # The base class takes a protocol.
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, files: TlsFiles) -> None:
        """Load the files.

        Raises:
            ConfigError: as `TlsFiles.load` does.
        """
        self.files = files
        self._loaded = files.stamp()
        self._refused: _Stamp | None = None
        self.current = files.load()

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Begin the next connection; asyncio calls this for each."""
        self._reload()
        return self.current.wrap_bio(*arguments, **named)

    def _reload(self) -> None:
        # Before the files are read: what is written meanwhile is read at the next connection.
        stamp = self.files.stamp()
        if stamp == self._loaded:
            return
        try:
            self.current = self.files.load()
        except ConfigError as refusal:
            if stamp != self._refused:
                log.warning("%s; connections are made with the files as they were before", refusal)
            self._refused = stamp
        else:
            self._loaded, self._refused = stamp, None
            log.info("the files for TLS have changed, and were read again")


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _reason(error: OSError, otherwise: str) -> str:
    """Why a file cannot be used; of TLS's own errors only a name is fit to be shown."""
    if isinstance(error, ssl.SSLError) or error.strerror is None:
        return otherwise
    return error.strerror
