"""YAML of strangers: parsed without classes, and without aliases that multiply.

A few hundred bytes of anchors and aliases can stand for billions of nodes; all limits are on what is written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from conviction.core.gate import MOST_DEPTH, MOST_DIGITS, read_text, unfit
from conviction.core.wording import printable
from conviction.errors import ConvictionError

__all__ = ["read_yaml"]

MOST_BYTES = 256 * 2**10
"""Of a file: the parser takes about a second for so many."""
MOST_NODES = 50_000
"""Values, keys among them, with every alias written out."""
_SYNTAX = "fix the YAML syntax"


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops at a depth before Python's own stack does, or the scanner takes for ever."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and all in it."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested more than {MOST_DEPTH} deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path, error: type[ConvictionError], *, hint: str = "check the path") -> tuple[Any, Any]:
    """The root node, whose marks know their lines, and the value of a YAML file; (None, None) of an empty one.

    Raises ``error``, naming file and line, for what is no YAML or too much of it.
    """
    text = read_text(path, error, hint=hint, most=MOST_BYTES)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, None
            _written_out(root, {})
            value = loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise error(f"{printable(path)}{line}: {printable(problem)}", hint=_SYNTAX) from fault
    # a value that is none of its tag's kind ends in one of these: a date that does not exist, `!!bool maybe`
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as fault:
        raise error(
            f"{printable(path)}: a value that YAML does not allow ({printable(fault)})", hint=_SYNTAX
        ) from fault
    if (problem := unfit(value)) is not None and "finite" not in problem:
        raise error(f"{printable(path)}: {problem}", hint="write shorter numbers and whole characters")
    return root, value


def _written_out(node: Any, sizes: dict[int, int | None]) -> int:
    """How many nodes a node stands for. Raises YAMLError where they are too many, or one is within itself."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise yaml.MarkedYAMLError(problem="an alias to what it stands in", problem_mark=node.start_mark)
        return size
    sizes[id(node)] = None
    total = 1
    if isinstance(node, yaml.ScalarNode):
        number = node.tag.endswith((":int", ":float"))
        if number and len(node.value) > MOST_DIGITS:
            problem = f"a number of {len(node.value):,} digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    else:
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        for part in parts:
            total += _written_out(part, sizes)
            if total > MOST_NODES:
                problem = f"more than {MOST_NODES:,} values, with aliases written out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=part.start_mark)
    sizes[id(node)] = total
    return total
