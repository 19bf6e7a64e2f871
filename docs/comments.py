"""Show the comment beside a field as its description in the API pages, as in `units: int  # n, hidden units`."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension


class FieldComments(Extension):
    """Take the comment at the end of a field's line for its docstring where it has none."""

    def on_attribute_instance(self, *, node: ast.AST | Any, attr: Attribute, **_: Any) -> None:
        """Read the line that the field stands in."""
        if attr.docstring is None and attr.parent is not None and attr.parent.is_class and attr.lineno:
            line = attr.lines_collection[attr.filepath][attr.lineno - 1]
            _, mark, comment = line.partition("  # ")
            if mark and not comment.startswith(("type:", "noqa")):
                attr.docstring = Docstring(comment.strip(), lineno=attr.lineno, parent=attr)
