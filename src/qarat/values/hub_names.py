"""How people write a model on the hub: an id, its address, with a revision or a slash behind it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from qarat.ground.errors import UserError

_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|(?:ssh://)?git@hf\.co[:/]|hf://|hub:", re.I)
_ID = r"([\w.-]+/[\w.-]+?)"
# Pages of a revision name it behind their kind; a revision of the hub's own making has slashes in it.
_PAGES = r"/(?:tree|blob|resolve|raw|commits?|blame|edit)/(refs/(?:pr|convert)/[^/?#]+|[^/?#]+)"
_ADDRESS = re.compile(rf"(?![\w.-]+/(?:tree|blob|resolve)/){_ID}(?:\.git)?(?:@([^/?#]+)|{_PAGES}|)(?:[/?#].*)?")
_NAME = re.compile(rf"{_ID}(?:@([^@\s]+))?")
_NO_MODELS = (
    "datasets",
    "spaces",
    "papers",
    "docs",
    "blog",
    "learn",
    "posts",
    "collections",
    "organizations",
    "models",
)


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
    rest = unquote(name[host.end() :] if host else name).rstrip("/")
    match = (_ADDRESS if host and host[0] != "hub:" else _NAME).fullmatch(rest)
    if match is not None and not (host and match[1].partition("/")[0] in _NO_MODELS):
        return match[1], next(filter(None, match.groups()[1:]), None)
    if host or "://" in name:
        raise UserError(f"{name} is no model's address on the hub; give OWNER/NAME, or fetch it and give its folder")
    return name, None


def name_in_cache(path: Path) -> str:
    """The id, ``OWNER/NAME``, of what lies in the hub's cache; empty elsewhere."""
    match = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{path.as_posix()}/")
    return f"{match[1]}/{match[2]}" if match else ""
