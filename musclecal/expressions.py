"""Conditions that a user writes as text, such as ``abs(eta_plus) < 1.4 and iso_plus < 0.15``.

The text is parsed, never executed: only column names, numbers, comparisons, logic, arithmetic and the
functions of `FUNCTIONS` exist. Text in quotes may be compared with a column by ``==`` or ``!=``.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError

__all__ = ["FUNCTIONS", "Condition"]

Array = NDArray[Any]
Booleans = NDArray[np.bool_]

FUNCTIONS: Mapping[str, tuple[Callable[..., Array], int, int | None]] = {
    "abs": (np.abs, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "cos": (np.cos, 1, 1),
    "sin": (np.sin, 1, 1),
    "hypot": (np.hypot, 2, 2),
    "min": (lambda *columns: reduce(np.minimum, columns), 2, None),
    "max": (lambda *columns: reduce(np.maximum, columns), 2, None),
}
"""Name -> function, fewest and most arguments."""

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Array, Array], Booleans]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC: Mapping[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.Mod: np.mod,
    ast.Pow: np.float_power,
}
BITS: Mapping[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.BitAnd: np.bitwise_and,
    ast.BitOr: np.bitwise_or,
}


@dataclass(frozen=True)
class Condition:
    """A checked expression: ``text`` as written.

    Raises
    ------
    InputError : not an expression, or one with anything but what this module's first lines list.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            _Evaluation(self.text, {}).check(self._tree())
        except RecursionError:
            raise InputError(f"expression {self.text!r}: is nested too deeply") from None

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise InputError(f"expression {self.text!r}: not understood: {reason}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it uses, sorted."""
        tree = self._tree()
        functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions
        }
        return tuple(sorted(names))

    def passes(self, columns: Mapping[str, Array], n_event: int) -> Booleans:
        """(n_event,) where the condition holds; comparisons with nan do not hold, except ``!=``.

        Raises
        ------
        InputError : an unknown column (the message lists the known ones), a result that is not true or false.
        """
        unknown = [name for name in self.names if name not in columns]
        if unknown:
            raise InputError(
                f"expression {self.text!r}: unknown column {unknown[0]!r}: known are {', '.join(columns)}"
            )
        with np.errstate(all="ignore"):
            passed = np.asarray(_Evaluation(self.text, columns).value(self._tree()))
        if passed.dtype != np.bool_:
            raise InputError(f"expression {self.text!r}: is no condition, compare it with something (x > 0)")
        return np.broadcast_to(passed, (n_event,))


class _Evaluation:
    """Walks a syntax tree: `check` looks whether all of it is allowed, `value` computes."""

    def __init__(self, text: str, columns: Mapping[str, Array]) -> None:
        self._text = text
        self._columns = columns

    def refused(self, node: ast.AST, why: str = "is not allowed") -> InputError:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return InputError(f"expression {self._text!r}: {part!r} {why}")

    def check(self, node: ast.expr) -> None:
        """Raise `InputError` for whatever `value` does not know."""
        match node:
            case ast.Name():
                return
            case ast.Constant(value=(int() | float()) as number):
                if isinstance(number, bool) or not abs(number) < 2**63:
                    raise self.refused(node, "is not a usable number")
            case ast.Compare(left=left, ops=ops, comparators=others):
                self._check_comparison(node, ops, [left, *others])
            case ast.BoolOp(values=parts):
                self._check_all(parts)
            case ast.UnaryOp(operand=part):
                self.check(part)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC or type(op) in BITS:
                self._check_all([left, right])
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
                self._check_call(node, name, parts)
            case _:
                raise self.refused(node)

    def _check_all(self, parts: list[ast.expr]) -> None:
        for part in parts:
            self.check(part)

    def _check_comparison(self, node: ast.expr, ops: list[ast.cmpop], parts: list[ast.expr]) -> None:
        if any(type(op) not in COMPARISONS for op in ops):
            raise self.refused(node)
        only_equality = all(isinstance(op, ast.Eq | ast.NotEq) for op in ops)
        self._check_all([part for part in parts if not (only_equality and _is_text(part))])

    def _check_call(self, node: ast.expr, name: str, parts: list[ast.expr]) -> None:
        _, fewest, most = FUNCTIONS[name]
        if len(parts) < fewest or (most is not None and len(parts) > most):
            raise self.refused(node, f"needs {fewest} argument(s){'' if most else ' or more'}")
        self._check_all(parts)

    def value(self, node: ast.expr) -> Array:
        """The value of a checked expression, (n_event,) or a scalar."""
        try:
            return self._value(node)
        except TypeError as error:
            raise self.refused(node, f"cannot be computed ({error})") from error

    def _value(self, node: ast.expr) -> Array:
        match node:
            case ast.Name(id=name):
                return self._columns[name]
            case ast.Constant(value=constant):
                return np.asarray(constant)
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self.value(part) for part in (left, *others)]
                steps = zip(ops, values[:-1], values[1:], strict=True)
                return reduce(np.logical_and, (COMPARISONS[type(op)](a, b) for op, a, b in steps))
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return reduce(join, (self._condition(part) for part in parts))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=part):
                return np.logical_not(self._condition(part))
            case ast.UnaryOp(op=op, operand=part):
                return np.negative(self.value(part)) if isinstance(op, ast.USub) else self.value(part)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BITS:
                return self._bits(node, BITS[type(op)], self.value(left), self.value(right))
            case ast.BinOp(left=left, op=op, right=right):
                return ARITHMETIC[type(op)](self.value(left), self.value(right))
            case ast.Call(func=ast.Name(id=name), args=parts):
                return FUNCTIONS[name][0](*(self.value(part) for part in parts))
        raise self.refused(node)

    def _condition(self, node: ast.expr) -> Array:
        value = self.value(node)
        if value.dtype != np.bool_:
            raise self.refused(node, "is neither true nor false, compare it with something (x > 0)")
        return value

    def _bits(self, node: ast.expr, join: Callable[[Array, Array], Array], one: Array, two: Array) -> Array:
        if "f" in (one.dtype.kind, two.dtype.kind):
            raise self.refused(node, "joins numbers: put comparisons into parentheses, or write and, or")
        return join(one, two)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
