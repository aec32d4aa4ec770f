"""Names of arguments as the command line spells them: what a message calls `` `budgets` `` is ``--budget`` there."""

from __future__ import annotations

import re
from collections.abc import Mapping


def spell_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message of the library with its arguments as flags (`qarat.ground.errors` says how messages name them).

    Args:
        text: Of an error or a note; what stands in backticks and is no argument stays as it is.
        flags: Name of an argument to its flag.
    """
    return re.sub(r"`([a-z_]+)`", lambda match: flags.get(match[1], match[0]), text)
