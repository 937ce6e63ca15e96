"""The project's own errors; a message says what, where, what was expected and what to do."""

from pathlib import Path


class EvoselectError(ValueError):
    """Base of every error the project raises on purpose; the CLI prints it as one message."""


class ConfigError(EvoselectError):
    """The configuration cannot be used: unknown key, wrong type, contradiction."""


class DataError(EvoselectError):
    """A row, a file or a set of rows cannot be used."""


class RowError(DataError):
    """A row is no conversation to learn from; `reason` is one of the slugs of `report/reasons`."""

    def __init__(self, message: str, reason: str = "no_conversation"):
        super().__init__(message)
        self.reason = reason


class NumericsError(EvoselectError):
    """A computation gave something non-finite or did not converge."""


class ArtifactError(EvoselectError):
    """A stored artifact is missing, damaged or belongs to something else."""


class RoundOrderError(EvoselectError):
    """A round was asked for before the round it builds on has promoted an adapter."""


class RoundHeldError(EvoselectError):
    """Another process is working on this evolution line right now."""


def where_looked(path: Path) -> str:
    """The end of a message about a file: of a relative path, the folder that it starts at."""
    return "" if path.is_absolute() else f", which is looked for in {Path.cwd()}"


def cannot_be_read(path: Path, error: OSError) -> str:
    """What is said of a file that the system does not let us read."""
    return f"{path}: cannot be read: {error.strerror}; check the path{where_looked(path)}"
