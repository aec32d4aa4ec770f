"""The one kind of error a user is meant to see.

Messages speak to whoever called a function as to whoever typed a command, so they know no flags: an argument or a
field is named in backticks, as Python has it, with its value behind it where there is one (`` `prefix` 3 ``). The
command line spells what it knows of these as its flags.
"""


class UserError(ValueError):
    """Something the caller can mend: the message says what is wrong, where, and what to do."""


class ArgumentError(UserError):
    """Words on the command line that make no sense together or at all."""


class NotPassedError(UserError):
    """A verdict, not a mishap: the command did its work, what it found was shown, and it found fault."""


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
