"""The one kind of error a user is meant to see.

Messages speak to whoever called a function as to whoever typed a command, so they know no flags: an argument or a
field is named in backticks, as Python has it, with its value behind it where there is one (`` `prefix` 3 ``). The
command line spells what it knows of these as its flags.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Generator


class UserError(ValueError):
    """Something the caller can mend: the message says what is wrong, where, and what to do.

    Attributes:
        code: Exit code of a command that ends so.
    """

    code = 1


class ArgumentError(UserError):
    """Words on the command line that make no sense together or at all."""

    code = 2


class NotPassedError(UserError):
    """A verdict, not a mishap: the command did its work, what it found was shown, and it found fault."""


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UndecidedError(NotPassedError):
    """The verdict that there is none: no fault was found, but not everything was judged."""

    code = 3


class NotJudgedError(UserError):
    """Nothing can be said: what was asked is not computed by qarat, or could not be on this machine."""

    code = 3


_SHORT = {
    errno.ENOMEM: "there was not enough memory",
    errno.EAGAIN: "no further thread or process could be started",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "a disk is read-only",
    errno.EACCES: "a permission is missing",
    errno.EPERM: "a permission is missing",
    errno.EIO: "a disk cannot be read",
    errno.ESTALE: "a network disk was lost",
    errno.ETIMEDOUT: "the network did not answer",
    errno.ENETUNREACH: "there is no network",
    errno.ENODEV: "the GPU, or its driver, does not work",
    errno.ELIBACC: "a library is missing, or cannot be loaded",
}
# What libraries say who give no number: torch, Python's threads, safetensors and the tokenizers.
_SAID = {
    errno.ENOMEM: r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory",
    errno.EAGAIN: r"can't start new thread|Resource temporarily unavailable",
    errno.EMFILE: r"Too many open files",
    errno.ENOSPC: r"No space left on device",
    errno.EIO: r"Input/output error|Bus error",
    errno.ENODEV: r"CUDA error|CUDA driver|NVIDIA driver|no kernel image",
}
_KINDS = {MemoryError: errno.ENOMEM, TimeoutError: errno.ETIMEDOUT, ImportError: errno.ELIBACC}


def local_cause(error: BaseException | None) -> str:
    """What this machine lacked, in words; empty where an error is of another kind.

    Args:
        error: Also one that others stand behind, as its causes.
    """
    while error is not None:
        number = next((n for kind, n in _KINDS.items() if isinstance(error, kind)), getattr(error, "errno", None))
        if number not in _SHORT and not isinstance(error, UserError):
            number = next((n for n, pattern in _SAID.items() if re.search(pattern, str(error))), None)
        if number in _SHORT:
            return f"{_SHORT[number]} ({str(error) or type(error).__name__})"
        error = error.__cause__ or error.__context__
    return ""


@contextlib.contextmanager
def judging(what: object) -> Generator[None]:
    """Say of what this machine lacks that it is no fault of what is judged.

    Raises:
        NotJudgedError: In the place of every such error.
    """
    try:
        yield
    except NotJudgedError:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if cause := local_cause(error):
            raise NotJudgedError(
                f"{what} was not judged: {cause}; this says nothing of it: mend that, and try again"
            ) from error
        raise
