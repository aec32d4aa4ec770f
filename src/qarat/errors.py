"""The one kind of error a user is meant to see."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Something the caller can mend: the message says what is wrong, where, and what to do."""
