"""The two ways in which a calibration says no, and the exit codes that go with them.

Not for programming errors: those stay ordinary Python exceptions (exit code 1).
"""

__all__ = ["InputError", "QualityGateError"]


class InputError(ValueError):
    """The user's input cannot be used: the message names the file, column, bin or key. Exit code 2."""

    exit_code = 2


class QualityGateError(RuntimeError):
    """The work was done, but its quality is not good enough to be used unseen. Exit code 3."""

    exit_code = 3
