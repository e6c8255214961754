"""A griffe extension that shows docstrings as they were written, and the fields of jaxdiff's dataclasses.

Docstrings of modules hold formulas in aligned columns: they become preformatted text. In the others, an asterisk is an
asterisk and not emphasis. `jaxdiff.typing.pytree` and its kin make dataclasses, which static analysis can't know, so
the parameters of their constructors are taken from the imported class.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}
_MAKERS = ("pytree", "static_dataclass", "dataclass")


class AsWritten(griffe.Extension):
    """Prepare the docstrings and the constructors of a package for mkdocstrings."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Visit everything in a package."""
        _visit(pkg)


def _visit(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        text = obj.docstring.value
        obj.docstring.value = f"```text\n{text}\n```" if obj.is_module else _escaped(text)
    elif isinstance(obj, griffe.Attribute) and isinstance(obj.parent, griffe.Class):
        _add_comment(obj)
    if isinstance(obj, griffe.Class) and "__init__" not in obj.members:
        _add_constructor(obj)
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            _visit(member)


def _escaped(text: str) -> str:
    """Escape asterisks outside code and names of parameters."""
    lines, code = [], False
    for line in text.split("\n"):
        if line.strip():
            # Indented by four spaces after an empty line, it is code; right after "Args:" it is not.
            code = line.startswith("    ") and (code or not lines or not lines[-1].strip())
        parts = line.split("`")
        parts[::2] = [re.sub(r"(?<!^  )(?<!^  \*)\*", r"\\*", part) for part in parts[::2]]
        lines.append(line if code else "`".join(parts))
    return "\n".join(lines)


def _add_comment(field: griffe.Attribute) -> None:
    """Make the comment behind a field its docstring."""
    found = re.search(r"  # (?!type: )(.+)$", field.source)
    if found is not None:
        field.docstring = griffe.Docstring(_escaped(found[1]), parent=field, lineno=field.lineno)


def _add_constructor(cls: griffe.Class) -> None:
    """Give a dataclass the `__init__` that its decorator makes."""
    makers = {str(decorator.callable_path).rpartition(".")[2] for decorator in cls.decorators}
    if not makers.intersection(_MAKERS):
        return
    made = getattr(importlib.import_module(cls.module.path), cls.name)
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(made, follow_wrapped=False).parameters.items():
        given = parameter.default
        default = None if given is inspect.Parameter.empty else _shown(given)
        parameters.append(griffe.Parameter(name, kind=_KINDS[parameter.kind], default=default))
    cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))


def _shown(default: Any) -> str:
    """Return a default as a reader would write it."""
    text = repr(default)
    return "..." if text.startswith("<") else text
