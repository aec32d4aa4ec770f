"""The one kind of error a user is meant to see."""


class UserError(ValueError):
    """Something the caller can mend: the message says what is wrong, where, and what to do."""


class ArgumentError(UserError):
    """Words on the command line that make no sense together or at all."""


class NotPassedError(UserError):
    """A verdict, not a mishap: the command did its work, what it found was shown, and it found fault."""
