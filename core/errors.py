"""Every exception that `core` raises on purpose, in one tree.

Each message names the offender and the fix. Errors of other libraries are translated at the one seam where
they enter; what arrives here untranslated is a bug.

    CoreError
    ├── ConfigError                 an option or a combination of options that cannot work
    ├── ModelError                  a model that cannot be found, read or run
    │   ├── ModelNotFound           no such directory, file or hub name, or no network to fetch it
    │   ├── UnsupportedModel        an architecture or a weight format that is not implemented
    │   └── WeightError             a malformed, truncated or mismatching weight file
    ├── TokenizerError              a tokenizer or a chat template that cannot be read
    ├── PlatformError               a hardware platform
    │   ├── PluginLoadError         a plugin that cannot be imported or registered
    │   ├── ApiVersionError         a plugin written for another version of the contract
    │   ├── PlatformBroken          hardware that should work and does not
    │   ├── PlatformNotFound        no platform, or not the one that was asked for
    │   ├── Unsupported             a feature that the platform does not have
    │   ├── OutOfDeviceMemory       an allocation that the device refused
    │   └── DeviceLost              the device went away while it was in use
    ├── RecordingError              a model's forward that cannot be recorded
    ├── RequestError                one request; the engine goes on
    │   ├── InvalidRequest          HTTP 400: names the field
    │   ├── NotFound                HTTP 404
    │   ├── QueueFull               HTTP 429
    │   └── DeadlineExceeded        HTTP 408
    └── EngineDead                  the engine process ended and was not brought back
"""

from __future__ import annotations


class CoreError(Exception):
    """Root of the tree."""


# --- configuration -------------------------------------------------------------------------------------------


class ConfigError(CoreError):
    """An unknown, malformed or contradictory option.

    `option` is spelt as the user wrote it (`--max-num-seqs`, `CORE_LOG_LEVEL`, `max_num_seqs=`).
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option = option


# --- models --------------------------------------------------------------------------------------------------


class ModelError(CoreError):
    """A model that cannot be found, read or run."""


class ModelNotFound(ModelError):
    """No such directory, file or hub name, or no way to fetch it."""


class UnsupportedModel(ModelError):
    """An architecture, or a weight format, that this version does not implement."""


class WeightError(ModelError):
    """A weight file that is malformed, truncated, hostile, or does not fit the model.

    `tensor` and `offset` (bytes from the start of the file) are given where they are known.
    """

    def __init__(self, file: object, message: str, *, tensor: str | None = None, offset: int | None = None) -> None:
        where = str(file)
        if tensor is not None:
            where += f", tensor {tensor!r}"
        if offset is not None:
            where += f", at byte {offset}"
        super().__init__(f"{where}: {message}")
        self.file = str(file)
        self.tensor = tensor
        self.offset = offset


class TokenizerError(CoreError):
    """A tokenizer or a chat template that cannot be read or used."""


# --- platforms -----------------------------------------------------------------------------------------------


class PlatformError(CoreError):
    """Root of what goes wrong with a hardware platform."""


class PluginLoadError(PlatformError):
    """A plugin that cannot be imported or registered."""


class ApiVersionError(PlatformError):
    """A plugin written for another version of the contract."""


class PlatformBroken(PlatformError):
    """A platform that should work on this machine and does not."""


class PlatformNotFound(PlatformError):
    """No usable platform, or none by the name that was asked for."""


class Unsupported(PlatformError):
    """A feature that a platform does not have, and why."""

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(f"{feature} is not supported: {reason}")
        self.feature = feature
        self.reason = reason

    def __reduce__(self) -> tuple[type[Unsupported], tuple[str, str]]:
        return type(self), (self.feature, self.reason)


class OutOfDeviceMemory(PlatformError):
    """An allocation that the device, or the budget it was given, refused."""


class DeviceLost(PlatformError):
    """The device went away while it was in use."""


class RecordingError(CoreError):
    """A model's forward did something that cannot be recorded into an OpProgram."""


# --- requests ------------------------------------------------------------------------------------------------


class RequestError(CoreError):
    """Something wrong with one request. It never reaches the engine's loop."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """A field with a wrong type or value; `param` names it."""


class NotFound(RequestError):
    """A model or route that does not exist."""

    status = 404
    kind = "not_found_error"


class QueueFull(RequestError):
    """More requests are waiting than the server was told to hold."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, code="queue_full")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """A request's own deadline passed before its first token."""

    status = 408
    kind = "timeout_error"


class EngineDead(CoreError):
    """The engine process ended and was not, or could not be, brought back."""
