"""What a caller or an operator can cause.

* OctavoError
  + ConfigError              the operator's: engine.toml, environment, checkpoint folder
    - UnsupportedModelError  the checkpoint asks for something the engine does not have
    - QualityGateError       a quantized form without evidence that it is good enough
  + InvalidRequestError      the caller's: one field of one request
  + StepMemoryError          the device has no memory left for one step
  + EngineDeadError          the decode loop has ended; nothing can be served any more
"""


class OctavoError(Exception):
    """Base of every error that Octavo raises on purpose."""


class ConfigError(OctavoError):
    """A setting or a checkpoint that cannot be served; the message names it and its limit."""


class UnsupportedModelError(ConfigError):
    """A checkpoint whose config asks for something unsupported; names config key and value."""

    def __init__(self, key: str, value: object, supported: str) -> None:
        super().__init__(f"config.json: {key} = {value!r} is not supported; supported: {supported}")
        self.key = key
        self.value = value


class QualityGateError(ConfigError):
    """A quantized form that may not be served; says why, and ends with the command that measures
    it."""


class InvalidRequestError(OctavoError):
    """A request that cannot be served as it was sent; names field, value and limit."""

    MAX_SHOWN = 80

    def __init__(
        self, field: str, value: object, limit: str, *, message: str | None = None
    ) -> None:
        """`message` takes the place of ours where clients of another server wait for its words."""
        try:
            shown = value if value and isinstance(value, str) else repr(value)
        except (ValueError, RecursionError):  # an integer of thousands of digits, deep nesting
            shown = f"a {type(value).__name__} too large to show"
        if len(shown) > self.MAX_SHOWN:
            shown = f"{shown[: self.MAX_SHOWN]}… ({len(shown)} characters)"
        super().__init__(message or f"{field}: got {shown}; {limit}")
        self.field = field


class StepMemoryError(OctavoError):
    """The device has no memory left for what one step needs beside the KV memory."""


class EngineDeadError(OctavoError):
    """The decode loop has ended, by a fault or a shutdown."""
