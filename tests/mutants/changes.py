"""The mutants of a module: each is a small change of its text, made where the syntax tree says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

#: Letters around a change that are shown with it.
CONTEXT = 30
#: Of comparisons: just beside the boundary, and the opposite.
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
#: Methods of text whose call is dropped.
_TRIMMING = ("strip", "rstrip", "lower", "splitlines")


class Mutant(NamedTuple):
    """One changed module.

    Args:
        path: Of the module, relative to the project.
        line: Where the change is.
        function: The outermost function that holds it; empty: none does, it acts at import.
        before: What stood there.
        after: What stands there now.
        text: The whole module, changed.
    """

    path: str
    line: int
    function: str
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        """What tells it apart in the list of accepted ones; without the line, which moves."""
        return f"{self.path} {self.function or 'module'}: {self.before} -> {self.after}"


class _Place(NamedTuple):
    node: ast.stmt | ast.expr
    function: str
    is_condition: bool


def mutants_of(path: str, text: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    found = []
    lines = text.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
    for node, function, is_condition in _mutable(ast.parse(text)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        for after in [*_changes(node), *(_opposite(node) if is_condition else ())]:
            changed = text.encode()[:begin] + after.encode() + text.encode()[end:]
            found.append(Mutant(path, node.lineno, function, *_short(ast.unparse(node), after), changed.decode()))
    return sorted(found, key=lambda mutant: mutant.line)


def _mutable(tree: ast.AST, scope: str = "", inside: bool = False) -> Iterator[_Place]:
    """Nodes that may change; nothing for type checkers, no imports, decorators, docstrings, parts of f-strings."""
    for field, value in ast.iter_fields(tree):
        # Parts of f-strings have no places of their own before Python 3.12.
        if field in ("annotation", "returns", "decorator_list") or isinstance(tree, ast.JoinedStr):
            continue
        name, function = scope, inside
        if field == "body" and not inside and isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            name, function = f"{scope}{tree.name}", True
        elif field == "body" and not inside and isinstance(tree, ast.ClassDef):
            name = f"{scope}{tree.name}."
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or _is_fixed(node):
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield _Place(node, name if function else "", field in ("test", "ifs"))
            yield from _mutable(node, name, function)


def _is_fixed(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
            return True
        case ast.Call(ast.Name("TypeVar")) | ast.Subscript(ast.Name("Literal")):
            return True
    return False


def _changes(node: ast.stmt | ast.expr) -> Iterator[str]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(left, [operator], [right]):
            for other in _COMPARISONS[type(operator)]:
                yield _text(ast.Compare(left, [other()], [right]))
        case ast.Compare():
            yield from ("(True)", "(False)")
        case ast.BoolOp(operator, values):
            yield _text(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values))
            for n in range(len(values)):
                rest = [value for m, value in enumerate(values) if m != n]
                yield _text(ast.BoolOp(operator, rest) if len(rest) > 1 else rest[0])
        case ast.UnaryOp(ast.Not(), operand):
            yield _text(operand)
        case ast.UnaryOp(ast.USub(), ast.Constant(1)):
            yield "0"
        case ast.BinOp(left, operator, right) if type(operator) in _ARITHMETIC:
            yield _text(ast.BinOp(left, _ARITHMETIC[type(operator)](), right))
        case ast.IfExp(_, body, orelse):
            yield from (_text(body), _text(orelse))
        case ast.Constant(value):
            yield from _constants(value)
        case ast.Call(ast.Name("min" | "max"), [_, _] as arguments, []):
            yield from map(_text, arguments)
        case ast.Call(ast.Attribute(value, name), [], []) if name in _TRIMMING:
            yield _text(value)
        case ast.Call(function, arguments, keywords) if keywords:
            for n, keyword in enumerate(keywords):
                if keyword.arg is not None:
                    yield _text(ast.Call(function, arguments, keywords[:n] + keywords[n + 1 :]))
        case ast.Dict(keys, values) if len(keys) > 1:
            for n in range(len(keys)):
                yield _text(ast.Dict(keys[:n] + keys[n + 1 :], values[:n] + values[n + 1 :]))
        case ast.Return(value) if value is not None and not (isinstance(value, ast.Constant) and not value.value):
            yield "return None"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
            yield "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript(), *_]):
            yield "pass"


def _opposite(condition: ast.stmt | ast.expr) -> Iterator[str]:
    if isinstance(condition, ast.Name | ast.Attribute | ast.Subscript | ast.Call | ast.NamedExpr):
        yield f"(not {_text(condition)})"


def _constants(value: object) -> Iterator[str]:
    match value:
        case bool():
            yield str(not value)
        case int() | float():
            yield repr(value + 1 if abs(value) <= 2 else type(value)(value / 10))
        case str() if value and not any(letter.isspace() for letter in value):  # sentences are for people
            yield repr(f"{value}!")  # means nothing more in a regular expression or a pattern of file names


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _short(before: str, after: str) -> tuple[str, str]:
    """What differs, with a little of what is around it."""
    after = after if before.startswith("(") else after.removeprefix("(").removesuffix(")")
    same = _alike(before, after)
    begin, end = max(same - CONTEXT, 0), max(_alike(before[:same:-1], after[:same:-1]) - CONTEXT, 0)
    return before[begin : len(before) - end], after[begin : len(after) - end]


def _alike(one: str, other: str) -> int:
    """How many letters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
