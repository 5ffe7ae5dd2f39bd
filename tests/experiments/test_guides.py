"""The guides and notebooks do what they say: each block runs, after the first one of its guide."""

import functools
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import minijaxnet as mjn

HOME = Path(mjn.__file__).parents[1]
GUIDES = HOME / "experiments" / "guides"
BLOCK = re.compile(r"```python *(\w*)\n(.*?)```", re.DOTALL)
BLOCKS = {path.stem: BLOCK.findall(path.read_text(encoding="utf-8")) for path in sorted(GUIDES.glob("*.md"))}
TESTED = [
    (guide, k) for guide, blocks in BLOCKS.items() for k, (needs, _) in enumerate(blocks) if k and needs != "notest"
]
NOTEBOOKS = sorted(GUIDES.glob("*.ipynb"))


def quick(code):
    """Benchmarks take a tenth of a second here."""
    return re.sub(r"seconds=[\d.]+", "seconds=0.1", code)


@functools.cache
def started(guide):
    """What the first block of a guide leaves behind."""
    names = {}
    exec(compile(BLOCKS[guide][0][1], guide, "exec"), names)
    return names


@pytest.fixture
def loggers(monkeypatch):
    """Stand-ins for wandb and mlflow, with the same calls; what they are given."""
    rows = {"wandb": [], "mlflow": []}

    def init(project=None, id=None, resume=None):
        return SimpleNamespace(log=lambda row, step=None: rows["wandb"].append((step, row)))

    def log_metrics(metrics, step=None):
        rows["mlflow"].append((step, metrics))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=log_metrics))
    return rows


@pytest.mark.parametrize(("guide", "k"), TESTED)
def test_a_block_runs(guide, k, loggers, tmp_path, monkeypatch):
    needs, code = BLOCKS[guide][k]
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(quick(code), f"{guide}, block {k}", "exec"), dict(started(guide)))
    if "wandb" in code:
        for rows in loggers.values():
            assert [step for step, _ in rows] == list(range(0, 101, 5))
            assert all(step == row["step"] and isinstance(row["loss"], float) for step, row in rows)
        assert any((tmp_path / "events").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    notebook, names = json.loads(path.read_text(encoding="utf-8")), {}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    monkeypatch.chdir(tmp_path)
    for before, cell in zip(notebook["cells"], notebook["cells"][1:], strict=False):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown" and not cell["outputs"]
            exec(compile(quick("".join(cell["source"])), f"{path.name}, {cell['id']}", "exec"), names)


@pytest.mark.slow
def test_the_picture_is_made(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("surface", GUIDES / "surface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["surface.py", str(tmp_path / "surface.png")])
    module.main()
    assert "34 of 100 descents found the wave" in capsys.readouterr().out
    assert (tmp_path / "surface.png").stat().st_size < 150_000


@pytest.mark.parametrize("path", [HOME / "README.md", *sorted(GUIDES.glob("*.md"))], ids=lambda path: path.stem)
def test_links_and_commands_name_files_that_are_there(path):
    text = path.read_text(encoding="utf-8")
    links = [path.parent / link for link in re.findall(r"\]\(([^)#]+)\)", text)]
    files = [HOME / name for name in re.findall(r"(?<!tests/)experiments/[\w/]+\.\w+", text)]
    assert [str(file) for file in links + files if not file.exists()] == []
