"""Sizes stay readable, and what is public is hinted and documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "onereel"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_POSITIONAL = 2

# Methods of a class with a base outside this package whose signature a library calls or promises:
# torch calls forward, diffusers and transformers promise the others to their users.
LIBRARY_METHODS = {
    *("__init__", "__call__", "forward", "backward", "setup_context", "step"),
    *("encode", "decode", "tiled_encode", "tiled_decode", "enable_tiling"),
    *("encode_prompt", "check_inputs", "prepare_latents", "prepare_extra_step_kwargs"),
    *("from_pretrained", "save_pretrained", "from_config"),
    *("load_lora_weights", "load_lora_into_transformer", "lora_state_dict", "save_lora_weights"),
    *("fuse_lora", "unfuse_lora", "set_adapters"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(tree: ast.AST, owner: ast.ClassDef | None = None) -> Iterator[
    tuple[Function, ast.ClassDef | None]
]:  # fmt: skip
    """List every function, nested ones included, with the class it is a method of."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, owner
        yield from functions_of(node, node if isinstance(node, ast.ClassDef) else None)


def _decorators(node: Function | ast.ClassDef) -> set[str]:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return {ast.unparse(name).split(".")[-1] for name in names}


def _is_command(node: Function) -> bool:
    """A function that typer calls: its parameters are the command's flags."""
    calls = [d for d in node.decorator_list if isinstance(d, ast.Call)]
    return any(ast.unparse(d.func).split(".")[-1] in ("command", "callback") for d in calls)


def _follows_library(node: Function, owner: ast.ClassDef | None) -> bool:
    return owner is not None and bool(owner.bases) and node.name in LIBRARY_METHODS


def _own_parameters(node: Function, owner: ast.ClassDef | None) -> tuple[list[str], list[str]]:
    positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    if owner is not None and "staticmethod" not in _decorators(node):
        positional = positional[1:]
    return positional, [a.arg for a in node.args.kwonlyargs]


def size_errors(source: str) -> list[str]:
    """List functions that are too long."""
    errors = []
    for node, _ in functions_of(ast.parse(source)):
        # A command's flags are data: only its body counts.
        first = node.body[0].lineno if _is_command(node) else node.lineno
        lines = (node.end_lineno or first) - first + 1
        if lines > MAX_FUNCTION_LINES:
            errors.append(f"{node.name} (line {node.lineno}): {lines} lines")
    return errors


def parameter_errors(source: str) -> list[str]:
    """List functions with too many parameters, and public ones that take too many unnamed.

    A private function's callers are in sight, so only its number of parameters is bounded.
    """
    tree = ast.parse(source)
    public = {node for node, _ in _public(tree) if not node.name.startswith("_")}
    public |= {node for node, _ in _public(tree) if node.name in ("__init__", "__call__")}
    errors = []
    for node, owner in functions_of(tree):
        if _is_command(node) or _follows_library(node, owner):
            continue
        positional, keyword = _own_parameters(node, owner)
        if len(positional) + len(keyword) > MAX_PARAMETERS:
            errors.append(f"{node.name} (line {node.lineno}): {len(positional + keyword)} in all")
        if node in public and len(positional) > MAX_POSITIONAL:
            errors.append(f"{node.name} (line {node.lineno}): {len(positional)} positional")
    return errors


def _public(tree: ast.Module) -> Iterator[tuple[Function | ast.ClassDef, ast.ClassDef | None]]:
    for node in tree.body:
        if not isinstance(node, (*Function.__args__, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node, None
        if isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, Function))
            yield from ((method, node) for method in methods)


def _unhinted(node: Function, owner: ast.ClassDef | None) -> list[str]:
    args = [*node.args.posonlyargs, *node.args.args]
    if owner is not None and "staticmethod" not in _decorators(node):
        args = args[1:]
    args += node.args.kwonlyargs + [a for a in (node.args.vararg, node.args.kwarg) if a]
    missing = [a.arg for a in args if a.annotation is None]
    return missing + ([] if node.returns is not None else ["return"])


def public_errors(source: str) -> list[str]:
    """List public functions, methods and classes without hints or a docstring."""
    errors = []
    for node, owner in _public(ast.parse(source)):
        name = f"{owner.name}.{node.name}" if owner else node.name
        private = node.name.startswith("_")
        if isinstance(node, Function) and (not private or node.name == "__init__"):
            errors += [f"{name}: no hint for {what}" for what in _unhinted(node, owner)]
        if not private and "overload" not in _decorators(node) and not ast.get_docstring(node):
            errors.append(f"{name}: no docstring")
    return errors


def _id(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_file_and_functions_are_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert size_errors(source) == []


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_parameters_are_few_and_named(file: Path) -> None:
    assert parameter_errors(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_what_is_public_is_hinted_and_documented(file: Path) -> None:
    assert public_errors(file.read_text(encoding="utf-8")) == []


def test_the_median_function_is_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node, _ in functions_of(ast.parse(file.read_text(encoding="utf-8")))
    )
    # style: about 10 without docstrings; with them, as counted here, about 16.
    assert lengths[len(lengths) // 2] <= 20


def test_the_size_guard_sees() -> None:
    body = "\n".join(f"    x = {i}" for i in range(60))
    assert size_errors(f"def f():\n{body}") == ["f (line 1): 61 lines"]
    assert (
        size_errors(f"class A:\n    def f(self):\n        def g():\n            pass\n{body}") == []
    )


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a, b, c): ...", 1),
        ("def f(a, b, *, c, d, e, g, h, i): ...", 0),
        ("def f(a, b, *, c, d, e, g, h, i, j): ...", 1),
        ("class A:\n    def f(self, a, b): ...", 0),
        ("class A:\n    def forward(self, a, b, c): ...", 1),
        ("class A(Module):\n    def forward(self, a, b, c): ...", 0),
        ("class A(Module):\n    def f(self, a, b, c): ...", 1),
        ("class A:\n    def __init__(self, a, b, c): ...", 1),
        ("def _f(a, b, c): ...", 0),
        ("def _f(a, b, c, d, e, g, h, i, j): ...", 1),
        ("@app.command()\ndef f(a, b, c): ...", 0),
    ],
)
def test_the_parameter_guard_sees(source: str, count: int) -> None:
    assert len(parameter_errors(source)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a: int) -> int:\n    'Doc.'", 0),
        ("def f(a) -> int:\n    'Doc.'", 1),
        ("def f(a: int):\n    'Doc.'", 1),
        ("def f(*a) -> int: ...", 2),
        ("def _f(a): ...", 0),
        ("class A:\n    'Doc.'\n    def f(self) -> int: ...", 1),
        ("class A:\n    def _f(self): ...", 1),
        ("class _A:\n    def f(self): ...", 0),
    ],
)
def test_the_public_guard_sees(source: str, count: int) -> None:
    assert len(public_errors(source)) == count
