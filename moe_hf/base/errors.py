"""The errors that this package raises on bad input, so that callers can tell them from bugs."""


class ConfigError(ValueError):
    """A setting is wrong: the text names the field, the value that was given and what is allowed."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be used: the text says what was found, what is needed and what to do."""


class BackendUnavailableError(ImportError):
    """An optional package is asked for but absent: the text says what to install."""
