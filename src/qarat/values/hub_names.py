"""How people write a model on the hub: an id, its address, with a revision or a slash behind it."""

from __future__ import annotations

import re
from pathlib import Path

from qarat.ground.errors import UserError

_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://|hub:")
_ID = r"([\w.-]+/[\w.-]+)"
_ADDRESS = re.compile(rf"{_ID}(?:(?:@|/(?:tree|blob|resolve|commit)/)([^/?#]+).*|[?#].*)?")
_NAME = re.compile(rf"{_ID}(?:@([^@\s]+))?")


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """A hub id and the revision that is named with it.

    Args:
        name: ``OWNER/NAME``, ``OWNER/NAME@REVISION``, or an address such as
            ``https://huggingface.co/OWNER/NAME/tree/REVISION``; slashes at the end are dropped.

    Returns:
        The id and the revision, None where it names none. What is nothing of the kind comes back as it is.

    Raises:
        UserError: An address that is no model's on the hub.
    """
    host = _HOST.match(name)
    match = (_ADDRESS if host and "/" in host[0] else _NAME).fullmatch(name[host.end() if host else 0 :].rstrip("/"))
    if match is not None and not (host and match[1].startswith(("datasets/", "spaces/"))):
        return match[1], match[2]
    if host or "://" in name:
        raise UserError(f"{name} is no model's address on the hub; give OWNER/NAME, or fetch it and give its folder")
    return name, None


def name_in_cache(path: Path) -> str:
    """The id, ``OWNER/NAME``, of what lies in the hub's cache; empty elsewhere."""
    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{path.as_posix()}/")
    return f"{found[1]}/{found[2]}" if found else ""
