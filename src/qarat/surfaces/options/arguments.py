"""Arguments from frozen values: a verb is a struct, its groups are structs, a request of the library is such a group.

What an option is called, takes, defaults to and means is said once, by the field and by its entry under ``Attributes:``
in the docstring. Requests live below and know no command line, so what only it needs is here: how fields are spelled as
flags, and what stands for their values in help (`spelling.json`). tyro asks `rules` for the rest.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, cast

import msgspec
import tyro
from tyro.conf import UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from qarat.surfaces.options.groups import OnText
from qarat.values.budgets import parse_share

_SHARED = {name: place for place, name in enumerate(("runners", *OnText.__struct_fields__), 1)}
"""Groups that many verbs share; they come last, behind a verb's own options."""
_SPELLING = json.loads((Path(__file__).parent / "spelling.json").read_text("utf-8"))
FLAGS: dict[str, str] = _SPELLING["flags"]
"""Flags that are not their field's name; a group in front where a field of that name has another flag elsewhere."""
ALSO: dict[str, str] = _SPELLING["also"]
"""Flags of arguments that messages name and no field of the verb is."""
_SHORT = {"out": ["-o"], "quiet": ["-q"], "verbose": ["-v"]}
METAVARS: dict[str, str] = {name: shown for names, shown in _SPELLING["metavars"].items() for name in names.split()}
"""What stands for a value in help, by field; numbers are N and paths FILE where nothing else is said."""


class Leaf(NamedTuple):
    """One option of a verb.

    Attributes:
        path: The fields that lead to it, its own last.
        group: The struct that it is a field of.
        kind: Its type.
        default: ``tyro.MISSING`` where it must be given.
        positional: Whether it stands without a flag.
    """

    path: tuple[str, ...]
    group: type[msgspec.Struct]
    kind: Any
    default: Any
    positional: bool

    @property
    def typed(self) -> str:
        """The flag as it is typed: what is on already can only be switched off."""
        return f"--no-{self.flag}" if self.default is True else f"--{self.flag}"

    @property
    def flag(self) -> str:
        """As the command line and config files spell it, without dashes in front."""
        name = self.path[-1]
        return _special(FLAGS, self.group, name) or name.replace("_", "-")


def leaves(verb: type[msgspec.Struct]) -> list[Leaf]:
    """Every option of a verb, those in groups too, but for what it hides."""
    return [leaf for leaf in _leaves(verb, tyro.MISSING, ()) if not _is_hidden(verb, leaf.group, leaf.path[-1])]


def _leaves(group: type[msgspec.Struct], defaults: Any, path: tuple[str, ...]) -> Iterator[Leaf]:
    for name, kind, default in _fields(group, defaults):
        positional = typing.get_origin(kind) is Annotated
        plain = typing.get_args(kind)[0] if positional else kind
        if is_group(plain):
            yield from _leaves(plain, default, (*path, name))
        else:
            yield Leaf((*path, name), group, plain, default, positional)


def is_group(kind: Any) -> bool:
    """Whether a field holds a group of options."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def build(group: type[Any], values: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Any:
    """A verb's options from the values of some; what must be given and is not stays open for the command line.

    Args:
        group: The verb.
        values: By the path of a `Leaf`.
        path: That leads to the group.
    """
    return _build(group, values, tyro.MISSING, path)


def _build(group: type[Any], values: Mapping[tuple[str, ...], Any], defaults: Any, path: tuple[str, ...]) -> Any:
    made = {}
    for name, kind, default in _fields(group, defaults):
        here = (*path, name)
        made[name] = _build(kind, values, default, here) if is_group(kind) else values.get(here, default)
    return group(**made)


def flags_of(verb: type[msgspec.Struct] | None, verbs: Mapping[str, type[msgspec.Struct]]) -> dict[str, str]:
    """Name of an argument, as messages have it, to its flag: those of a verb, then those of all others."""
    others = {leaf.path[-1]: f"--{leaf.flag}" for other in verbs.values() for leaf in leaves(other)}
    own = {} if verb is None else {leaf.path[-1]: f"--{leaf.flag}" for leaf in leaves(verb)}
    return others | ALSO | own


def spell_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message of the library with its arguments as flags (`qarat.ground.errors` says how messages name them).

    Args:
        text: Of an error or a note; what stands in backticks and is no argument stays as it is.
        flags: As `flags_of` has them.
    """
    return re.sub(r"`([a-z_]+)`", lambda match: flags.get(match[1], match[0]), text)


class _Stand:
    """A plain class in place of a group: of a struct tyro would have typeguard check the default (`_quick`)."""

    group: type[msgspec.Struct]
    given: Any


def stand_for(group: type[msgspec.Struct], given: Any = tyro.MISSING) -> type[_Stand]:
    """What tyro makes a group of options from, with the values it has already."""
    return type(group.__name__, (_Stand,), {"group": group, "given": given})


def rules(verb: type[msgspec.Struct]) -> ConstructorRegistry:
    """How tyro makes a verb's options and their help from its fields."""
    registry = ConstructorRegistry()
    flags = {leaf.path[-1]: f"--{leaf.flag}" for leaf in leaves(verb)}

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, _Stand)):
            return None
        group = info.type.group
        fields = list(_fields(group, info.type.given))
        hidden = {name: default for name, _, default in fields if _is_hidden(verb, group, name)}
        shown = [_argument(group, *field, flags) for field in fields if field[0] not in hidden]
        return StructConstructorSpec(partial(group, **hidden), tuple(shown))

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """Numbers; those that are not whole may be percentages."""
        if info.type not in (int, float):
            return None
        kinds = (int,) if info.type is int else (int, float)
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="N",
            instance_from_str=lambda words: _read_number(info.type, words[0]),
            is_instance=lambda value: isinstance(value, kinds) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _read_number(kind: Any, word: str) -> Any:
    try:
        return int(word) if kind is int else float(parse_share(word))
    except ValueError:
        raise ValueError(f"{word!r} is no {'whole ' if kind is int else ''}number") from None


def _fields(group: type[msgspec.Struct], defaults: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of every field; the defaults of an instance where there is one."""
    kinds = _kinds(group)
    for field in sorted(msgspec.structs.fields(group), key=lambda field: _SHARED.get(field.name, 0)):
        given = getattr(defaults, field.name) if isinstance(defaults, msgspec.Struct) else field.default
        if given is msgspec.NODEFAULT:
            factory = field.default_factory
            given = tyro.MISSING if factory is msgspec.NODEFAULT else cast(Any, factory)()
        yield field.name, kinds[field.name], given


@cache
def _kinds(group: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(group, include_extras=True)  # every verb is asked, and they share groups


def _argument(group: type[Any], name: str, kind: Any, default: Any, flags: Mapping[str, str]) -> StructFieldSpec:
    if is_group(kind):
        return StructFieldSpec(name, stand_for(kind, default), tyro.MISSING, (kind.__doc__ or "").partition("\n")[0])
    told = spell_flags(describe_fields(group).get(name, ""), flags)
    listed = getattr(group, "LISTED", {}).get(name)  # a folder that is its own list
    if listed is not None:
        told += " " + "; ".join(f"{key}: {line.rstrip('.')}" for key, line in listed.describe().items()) + "."
    quiet = default in ((), None, "") or isinstance(default, bool) or (default is tyro.MISSING and "tuple" in str(kind))
    metadata = arg(
        name=_special(FLAGS, group, name),
        metavar=_metavar(group, name, kind),
        help_behavior_hint="" if quiet else None,
        aliases=_SHORT.get(name),
    )
    kind = _quick(
        UseAppendAction[kind] if name == "rules" else kind, empties=isinstance(default, tuple) and bool(default)
    )
    return StructFieldSpec(name, cast(Any, Annotated[kind, metadata]), default, told)


def _quick(kind: Any, *, empties: bool) -> Any:
    """A type that tyro checks defaults against without typeguard, whose import takes longer than all else it does.

    Args:
        kind: The type.
        empties: Whether a flag of several without a value means something: to take none where the default is some.
    """
    plain = kind.__origin__ if (marked := typing.get_origin(kind) is Annotated) else kind
    marks = kind.__metadata__ if marked else ()
    if isinstance(plain, UnionType):
        plain = Union[plain.__args__]  # noqa: UP007 (tyro knows typing.Union)
    elif typing.get_origin(plain) is tuple:
        spec = _spec_of_several(kind, plain.__args__[0], empties)
        container: Any = object if spec.nargs == "*" else tuple  # of a flag that is repeated tyro makes the tuple
        plain = Annotated[container, spec]
    return Annotated[plain, *marks] if marks else plain


def _spec_of_several(kind: Any, each: Any, empties: bool) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a tuple, but a flag without a value is refused unless it ``empties``; wrong words are named."""
    make, spec_of = PrimitiveTypeInfo.make, ConstructorRegistry.get_primitive_spec
    whole, one = (cast(PrimitiveConstructorSpec[Any], spec_of(make(k, set()))) for k in (kind, each))
    positional = typing.get_origin(kind) is Annotated

    def read(words: list[str]) -> tuple[Any, ...]:
        if not words and not positional and not empties:
            raise ValueError("it needs a value")
        return tuple(one.instance_from_str([word]) for word in words)

    return replace(whole, instance_from_str=read) if whole.nargs == "*" else whole


def _metavar(group: type[Any], name: str, kind: Any) -> str | None:
    """What stands for the value of an option in help; None where tyro lists the choices."""
    text = str(kind)
    if ("Literal" in text and name != "prefix") or "bool" in text:
        return None
    shown = getattr(group, "METAVARS", {}).get(name) or _special(METAVARS, group, name)
    shown = shown or ("FILE" if "Path" in text else "N")
    return f"{shown} ..." if "tuple" in text and name != "rules" else shown


def _is_hidden(verb: type[Any], group: type[Any], name: str) -> bool:
    return f"{group.__name__}.{name}" in getattr(verb, "HIDDEN", ())


def _special(table: Mapping[str, str], group: type[Any], name: str) -> str | None:
    return table.get(f"{group.__name__}.{name}") or table.get(name)


def describe_fields(group: type[Any]) -> dict[str, str]:
    """What the ``Attributes:`` of a struct's docstring say of each field, those of its bases too."""
    told: dict[str, str] = {}
    for base in reversed(group.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", section.rstrip()):
            name, _, text = entry.strip().partition(":")
            told[name] = " ".join(text.split())
    return told
