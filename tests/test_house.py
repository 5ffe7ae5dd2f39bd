"""The rules of the house: who may import whom, and what is public."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import minijaxnet

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minijaxnet"

FLOORS = [
    {"_types"},
    {"_files", "_jaxpr", "_loops", "_machine", "_reads", "_tables", "_trees"},
    {"_checks", "_programs", "goal"},
    {"columns", "network", "data"},
    {"losses", "custom_gradient"},
    {"backprop", "descent", "batches", "experiment"},
    {"descent_optax", "history", "landscape", "parallel", "streams"},
    {"loop", "sweeps"},
    {"verify", "bench", "run"},
    {"load"},
    {"report", "pytest_plugin"},
    {"cli"},
    {"__main__"},
]


def rooms_imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minijaxnet."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minijaxnet.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ("__init__", "_public")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors(path: Path):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    own = room_of(path)
    assert own in floor, f"{own} stands on no floor"
    too_high = {room for room in rooms_imported_by(path) - {own} if floor[room] >= floor[own]}
    assert not too_high, f"{own} imports from {too_high}, on its own floor or above"


def test_files_can_be_read_at_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: lines for path, lines in lengths.items() if lines > 320}


def test_public_names_are_the_contract():
    contract = """
    Network dense elementwise serial mlp mean_squared_error softmax_cross_entropy
    binary_cross_entropy accuracy prediction_errors objective Batch digits breast_cancer diabetes
    wine iris mlp_gradient with_gradient Descent DescentState StepInfo gradient_descent
    optax_descent descend descend_epochs Trace loss_slice loss_surface weight_direction project_path
    Experiment load_experiment check_grad check_vjp assert_grad assert_vjp GradReport GradientMismatch
    compare_steps StepComparison fit sweep SweepResult FLAT
    OUT_OF_STEPS DIVERGED save_checkpoint load_checkpoint CheckpointError
    """.split()
    assert set(contract) <= set(minijaxnet.__all__) == set(dir(minijaxnet))
    assert all(hasattr(minijaxnet, name) for name in minijaxnet.__all__)


def test_the_version_is_the_installed_one_and_asking_for_it_imports_no_jax():
    assert minijaxnet.__version__ == importlib.metadata.version("minijaxnet")
    code = "import sys, minijaxnet; minijaxnet.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_function_shows_an_example():
    without = [
        name
        for name in minijaxnet.__all__
        if not isinstance(getattr(minijaxnet, name), type | int)
        and ">>>" not in (getattr(minijaxnet, name).__doc__ or "")
    ]
    assert not without
