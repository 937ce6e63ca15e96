"""Jinja templates that users write: in a sandbox, and strict about what they name."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(text: str) -> Template:
    """Compile a template; raises jinja2.TemplateError if it is none.

    What it fills in must be there: null would read `None`, and of a list of options the one at -1,
    as hidden answers are written, would be the last.
    """
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(argument, int) and argument < 0:
                raise IndexError(f"number {argument} counts from the end, which is hardly meant")
            return super().getitem(obj, argument)

    return Environment(undefined=StrictUndefined, finalize=_there).from_string(text)


def _there(value: Any) -> Any:
    if value is None:
        raise ValueError("a value that is filled in is null")
    return value
