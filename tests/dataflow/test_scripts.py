"""Every dataflow is a script: short, and nothing but who does what."""

import ast
import inspect
import sys

import pytest

from jaxflow.dataflow import DATAFLOWS

SCRIPTS = [
    script
    for dataflow in DATAFLOWS.values()
    for script in (dataflow.step, dataflow.held_out)
    if script is not None
]
FORBIDDEN = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.With, ast.Lambda, ast.BinOp, ast.Import)


def name_of(script):
    return script.__name__


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_fits_on_a_screen_and_only_calls_roles(script):
    (function,) = ast.parse(inspect.getsource(script)).body
    assert function.end_lineno - function.lineno + 1 <= 40
    body = [node for statement in function.body for node in ast.walk(statement)]
    assert not [node for node in body if isinstance(node, FORBIDDEN)]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_s_file_imports_nothing_but_roles_and_types(script):
    tree = ast.parse(inspect.getsource(sys.modules[script.__module__]))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - {"jaxflow.dataflow.refill"} == {"__future__", "jaxflow.dataflow.roles", "jaxflow.types"}
