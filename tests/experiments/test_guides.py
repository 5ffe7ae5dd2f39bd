"""The guides do what they say: each block runs, after the first one of its guide."""

import importlib.util
import re
from pathlib import Path

import pytest

import minijaxnet as mjn

GUIDES = Path(mjn.__file__).parents[1] / "experiments" / "guides"
BLOCK = re.compile(r"```python *(\w*)\n(.*?)```", re.DOTALL)
BLOCKS = {path.stem: BLOCK.findall(path.read_text(encoding="utf-8")) for path in sorted(GUIDES.glob("*.md"))}
TESTED = [(guide, k) for guide, blocks in BLOCKS.items() for k, (needs, _) in enumerate(blocks) if needs != "notest"]


@pytest.fixture(scope="module")
def begun():
    """What the first block of each guide leaves behind."""
    names = {guide: {} for guide in BLOCKS}
    for guide, ((_, first), *_) in BLOCKS.items():
        exec(compile(first, guide, "exec"), names[guide])
    return names


@pytest.mark.parametrize(("guide", "k"), TESTED)
def test_a_block_runs(guide, k, begun, tmp_path, monkeypatch):
    needs, code = BLOCKS[guide][k]
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{guide}, block {k}", "exec"), dict(begun[guide]))
