"""The directions of imports, which keep the rooms of the house apart."""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# What each room may import of jaxflow beside itself: a room, or one module of it.
ALLOWED = {
    "types": set(),
    "algorithms": {"types"},
    "dataflow": {"types", "algorithms", "user_code"},
    "durable": set(),
    "command_line": {"types"},
    "models": {"types", "durable"},
    "engine": {"types", "models"},
    "workers": {
        "types",
        "algorithms",
        "models",
        "engine",
        "data",
        "rewards",
        "config",
        "placement",
        "batch_algebra",
        "dataflow",
        "run_rows",
    },
    "run_rows": {"config", "data", "dataflow"},
    "data": {"types"},
    "rewards": {"types", "user_code", "source_file", "data.wishes"},
    "tracking": {"types"},
    "run_directory": {"types", "durable"},
    "stop": set(),
    "source_file": set(),
    "user_code": {"types", "source_file"},
    "config": {"types", "models.decoder_config", "models.description", "models.presets"},
    "placement": {
        "types",
        "config",
        "dataflow",
        "models.adapters",
        "models.decoder_config",
        "models.transformer",
        "engine.sharding",
    },
    "batch_algebra": {
        "types",
        "config",
        "dataflow",
        "placement",
        "engine.batching",
        "engine.pipeline",
        "models.decoder_config",
    },
    "checks": {
        "types",
        "config",
        "placement",
        "batch_algebra",
        "algorithms",
        "data.tasks",
        "dataflow",
        "engine.batching",
        "engine.layout_rules",
        "engine.optimizer",
        "models.adapters",
        "models.decoder_config",
        "models.description",
        "models.families",
        "models.weights_in",
        "rewards.function",
        "rewards.scorers",
    },
    "job": {"config", "batch_algebra", "data"},
    "port": {"types", "command_line", "config", "dataflow", "engine.batching"},
    "mapping": {"types", "config", "placement", "batch_algebra", "models", "engine"},
}
# The top floor joins the rooms; nothing imports it from below.
TOP = ("warm_start", "controller", "supervisor", "plan_programs", "plan_command", "main", "convert")
for floor in TOP:
    ALLOWED[floor] = set(ALLOWED)

# Third parties that live in one place; an empty tuple is nowhere at all.
PLACES = {
    "ray": ("jaxflow/workers/",),
    "orbax": ("jaxflow/engine/checkpoint.py",),
    "tensorstore": ("jaxflow/engine/checkpoint.py",),
    "ml_collections": ("jaxflow/config/reading.py", "jaxflow/main.py", "configs/", "tests/"),
    **dict.fromkeys(("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"), ()),
    **dict.fromkeys(("torch", "tensorflow", "clu"), ("tests/", "experiments/")),
}


def imported(path: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    """Yield the absolute name of everything a file imports, at any depth; modules, not the names in them."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level > 0 else ()
            base = ".".join([*above, *([node.module] if node.module is not None else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                file = root.joinpath(*name.split("."))
                yield name if file.is_dir() or file.with_suffix(".py").is_file() else base
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("import_module", "__import__"):
                yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def files(root: pathlib.Path, *folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def wrong_directions(root: pathlib.Path) -> list[str]:
    """List the imports between rooms of jaxflow that no rule allows, and the rooms without a rule."""
    wrong = []
    for path in files(root, "jaxflow"):
        inside = path.relative_to(root / "jaxflow").with_suffix("").parts
        room = inside[0]
        if room == "__init__":
            allowed: set[str] = set()
        elif room in ALLOWED:
            allowed = ALLOWED[room] | {room}
        else:
            wrong.append(f"{path.relative_to(root)} belongs to no known room")
            continue
        for name in imported(path, root):
            parts = name.split(".")
            if parts[0] == "jaxflow" and not {".".join(parts[1:2]), ".".join(parts[1:3])} & allowed:
                wrong.append(f"{path.relative_to(root)} imports {name}")
    return wrong


def wrong_places(root: pathlib.Path) -> list[str]:
    """List the imports of third parties outside the places where they live."""
    wrong = []
    for path in files(root, "jaxflow", "configs", "experiments", "tests"):
        place = path.relative_to(root).as_posix()
        for name in imported(path, root):
            party = name.split(".")[0]
            if party in PLACES and not place.startswith(PLACES[party]):
                wrong.append(f"{place} imports {name}")
    return wrong


def cycle(root: pathlib.Path) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    graph = {}
    for path in files(root, "jaxflow"):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = {name for name in imported(path, root) if name.startswith("jaxflow.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_point_one_way():
    assert wrong_directions(ROOT) == []


def test_third_parties_stay_in_their_places():
    assert wrong_places(ROOT) == []


def test_no_import_cycles():
    assert cycle(ROOT) == []


def test_every_room_of_the_package_has_a_rule():
    rooms = {path.stem for path in (ROOT / "jaxflow").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} <= set(ALLOWED)


def test_nothing_below_imports_the_top_floor():
    assert [room for room, allowed in ALLOWED.items() if room not in TOP and allowed & set(TOP)] == []


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("jaxflow/algorithms/kl.py", "import jaxflow.models.heads", "imports jaxflow.models.heads"),
        ("jaxflow/engine/train.py", "from jaxflow import config", "imports jaxflow.config"),
        ("jaxflow/engine/train.py", "def f():\n    from ..config import Config", "imports jaxflow.config"),
        (
            "jaxflow/dataflow/ppo.py",
            "from jaxflow.workers.group import Group",
            "imports jaxflow.workers.group",
        ),
        ("jaxflow/data/prompts.py", "from jaxflow.rewards import scoring", "imports jaxflow.rewards.scoring"),
        (
            "jaxflow/config/schema.py",
            "from jaxflow.models.transformer import Decoder",
            "imports jaxflow.models.transformer",
        ),
        ("jaxflow/attic/old.py", "import os", "belongs to no known room"),
    ],
)
def test_a_wrong_direction_is_found(tmp_path, place, source, expected):
    for module in (
        "config",
        "models/heads",
        "models/transformer",
        "workers/group",
        "rewards/scoring",
        place[8:-3],
    ):
        path = tmp_path / "jaxflow" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / place).write_text(source)
    assert wrong_directions(tmp_path) == [f"{place} {expected}"]


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("jaxflow/controller.py", "import ray", True),
        ("jaxflow/workers/group.py", "import ray.util", False),
        ("jaxflow/engine/train.py", "import orbax.checkpoint as ocp", True),
        ("jaxflow/engine/checkpoint.py", "import orbax.checkpoint as ocp", False),
        ("jaxflow/controller.py", "from ml_collections import config_dict", True),
        ("configs/x.py", "from ml_collections import config_dict", False),
        ("jaxflow/workers/group.py", "def f():\n    from cloudpickle import dumps", True),
        ("jaxflow/data/prompts.py", "importlib.import_module('pickle')", True),
    ],
)
def test_a_third_party_out_of_place_is_found(tmp_path, place, source, found):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert (wrong_places(tmp_path) != []) == found


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "jaxflow").mkdir()
    (tmp_path / "jaxflow/a.py").write_text("from jaxflow.b import x")
    (tmp_path / "jaxflow/b.py").write_text("def f():\n    import jaxflow.a")
    assert {"jaxflow.a", "jaxflow.b"} == set(cycle(tmp_path))
