"""Files of the programs beside this one are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and rename it, so that a kill or a full disk leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    with explained(path):
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """End with a sentence where something cannot be written: a full disk is another exception in every library."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SystemExit(
            f"{path} cannot be written: {error}\n"
            "Is there space left? What was there before is kept, and the same command continues."
        ) from error
