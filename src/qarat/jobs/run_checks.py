"""What a run can refuse before anything long is done: its prefix, its prompt, its exports."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.ground.errors import UserError
from qarat.jobs.transforming import outline
from qarat.model.model import Model
from qarat.model.prefixes import check_prefix, leading_tokens
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import check_export
from qarat.stages.measure.generation import new_tokens, prompt_of
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme


def prefix_by_number(request: ProtectRequest, tokens: Sequence[TokenSet]) -> tuple[int, ...]:
    """The tokens of a prefix that is given as a number; none where it is to be found.

    Args:
        request: Whose prefix it is.
        tokens: All windows have to begin with it.

    Raises:
        UserError: Windows that do not.
    """
    if request.prefix == "auto":
        return ()
    first, *others = tokens
    prefix = leading_tokens(first, request.prefix)
    for windows in others:
        check_prefix(windows, prefix)
    return prefix


def check_exports(model: Model, request: ProtectRequest, draft: Plan, formats: Sequence[str]) -> None:
    """Check that whatever is planned can be exported: each site has the draft's scheme or the protection.

    Args:
        model: In float, as it was asked for.
        request: What the plan should be.
        draft: Everything low.
        formats: To export to.

    Raises:
        UserError: A prefix that may be found, or a scheme that a format cannot hold.
    """
    if formats and request.prefix == "auto":
        raise UserError("`prefix` auto: no format to export holds a prefix, if one is found; give `prefix` 0")
    model, protect = outline(model, request), parse_scheme(request.protection)
    open_sites = [a.site.name for a in draft.assignments if str(a.scheme) == draft.low]
    protected = draft.with_schemes(dict.fromkeys(open_sites, protect), "protected")
    for format in formats:
        check_export(model, draft, format)
        if protect != LinearScheme():
            check_export(model, protected, format)


def prompt_ids(model: Model, report: TokenSet, prompt: str | None, front: tuple[int, ...]) -> list[int]:
    """The prompt that is continued, as ids.

    Args:
        model: Whose tokenizer reads it.
        report: As whose windows begin, so does the prompt; one of them is it where none is given.
        prompt: In words.
        front: Tokens of a prefix, that it has to begin with.

    Raises:
        UserError: Another beginning, or too long for what is to follow.
    """
    if prompt is None:
        return prompt_of(model, report)
    ids = model.tokenizer(prompt, add_special_tokens=False).input_ids
    bos = model.tokenizer.bos_token_id
    ids = [bos, *ids] if int(report.windows[0, 0]) == bos else ids
    most = model.length - new_tokens(model)
    if tuple(ids[: len(front)]) != front:
        raise UserError(f"`prompt` does not begin with the prefix {list(front)} that `prefix` {len(front)} asks for")
    if not 1 <= len(ids) <= most:
        follow = f"with {new_tokens(model)} to follow"
        raise UserError(f"`prompt` has {len(ids)} tokens; give 1 to {most}, as the model takes {most}, {follow}")
    return ids
