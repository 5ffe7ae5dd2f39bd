"""The run folder: a name of its own, and JSON that is read back."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.run import folder as folder_module
from minijaxnet.run.folder import create_run_folder, write_json


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(folder_module, "datetime", SimpleNamespace(now=lambda zone: moment))
    folders = [create_run_folder(tmp_path / "deep" / "runs", "line") for _ in range(3)]
    assert [folder.name for folder in folders] == [f"line-20300102-030405{end}" for end in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)


def test_json_takes_arrays_and_has_null_for_what_is_not_finite(tmp_path):
    content = {
        "a": jax.device_put(np.array([1.0, np.nan])),
        "b": np.float32(0.5),
        "c": float("-inf"),
        "text": 'a"\\\n\0 \x7fé\u2028\ud800😀',
        "d": (jnp.int32(3),),
        5: True,
    }
    write_json(tmp_path / "a.json", content)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [1.0, None], "b": 0.5, "c": None, "text": content["text"], "d": [3], "5": True}
