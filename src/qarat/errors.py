"""The one kind of error a user is meant to see."""

__all__ = ["ArgumentError", "UserError"]


class UserError(ValueError):
    """Something the caller can mend: the message says what is wrong, where, and what to do."""


class ArgumentError(UserError):
    """Words on the command line that make no sense together or at all."""
