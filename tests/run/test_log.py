"""The log of a fit: which rows it has, what they hold, where they are written, and who else receives them."""

import json
import sys

import jax
import jax.numpy as jnp
import kits.fits
import numpy as np
import pytest
from kits.fits import DATA, OBJECTIVE, adam_in_minibatches, full_batch, in_a_bowl

import minijaxnet as mjn
from minijaxnet._trees import l2_norm
from minijaxnet.run.log import read_rows

fit_module = sys.modules["minijaxnet.run.fit"]


def fitted(kind, steps, **options):
    return kits.fits.fitted(kind, steps=steps, **options)


def steps_of(rows):
    return [row["step"] for row in rows]


def test_rows_are_the_multiples_and_the_end_and_hold_what_is_true_there():
    slope, norm = jax.jit(jax.value_and_grad(OBJECTIVE)), jax.jit(l2_norm)
    descent, start, _ = full_batch()

    def measure(params):
        return {"size": norm(params), "first": float(params[0]["weights"][0, 0])}

    for steps, log_every, expected in (
        (20, 7, [0, 7, 14, 20]),
        (21, 7, [0, 7, 14, 21]),
        (3, 1, [0, 1, 2, 3]),
        (3, 20, [0, 3]),
        (40, 20, [0, 20, 40]),
    ):
        result = fitted(full_batch(), steps, log_every=log_every, measure=measure)
        assert steps_of(result.rows) == expected
        for row in result.rows:
            params = mjn.descend(descent, start, DATA, steps=row["step"])[0].params
            loss, gradient = slope(params, DATA)
            assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
            assert row["gradient_norm"] == pytest.approx(float(norm(gradient)), rel=1e-4)
            assert row["size"] == float(norm(params))
            assert row["first"] == float(params[0]["weights"][0, 0])
            assert all(isinstance(row[name], float) for name in ("loss", "gradient_norm", "size", "first"))


@pytest.mark.parametrize("rate", [0.05, 1e25], ids=["learns", "diverges"])
def test_the_metrics_file_holds_the_rows(rate, tmp_path):
    size = jax.jit(l2_norm)
    result = fitted(in_a_bowl(rate), 30, log_every=4, measure=lambda params: {"size": size(params)}, run_dir=tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # JSON has neither NaN nor infinity: null stands for them.
    expected = [{name: value if np.isfinite(value) else None for name, value in row.items()} for row in result.rows]
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == expected
    timed = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps_of(timed) == steps_of(result.rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "timing.jsonl"]
    with pytest.raises(FileExistsError, match="got the folder of a run; expected a new one"):
        fitted(in_a_bowl(rate), 3, run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines() == lines
    diverges = rate > 1
    assert (result.status == mjn.DIVERGED) == diverges
    assert (expected[-1]["loss"] is None) == diverges
    assert jnp.isfinite(result.state.params).all() and result.state.step == result.steps_taken
    assert (result.steps_taken < 30) == diverges


@pytest.mark.parametrize(
    "text",
    ["", "\n", "{}\n", '{"step": "1"}\n', '{"step": 1}', 200_000 * "[", '{"step": 1, "a": "b"}\n', '{"step": true}\n'],
)
def test_rows_that_are_not_whole_are_none(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": null}\n' + text)
    [row] = read_rows(tmp_path / "metrics.jsonl")
    assert row["step"] == 0 and np.isnan(row["loss"])


# --- A sink -----------------------------------------------------------------------------------------------------------


class Recorder:
    """A sink that remembers what it received, and what the file held by then."""

    def __init__(self, folder):
        self.begun, self.rows, self.in_file = [], [], []
        self._path = folder / "metrics.jsonl"
        self.sink = mjn.Sink(self._write, self._begin)

    def _begin(self, step):
        self.begun.append((step, len(self.rows)))

    def _write(self, row):
        self.rows.append(dict(row))
        self.in_file.append(steps_of(read_rows(self._path)))


def test_a_sink_gets_each_row_once_it_is_written_and_after_a_resume_those_from_there_on_anew(tmp_path, step_by_step):
    options = {"log_every": 6, "run_dir": tmp_path, "measure": lambda params: {"first": params[0]["bias"][0]}}

    class Killed(BaseException):
        pass

    def end(progress):
        if progress.step == 25:
            raise Killed

    first, second = Recorder(tmp_path), Recorder(tmp_path)
    with pytest.raises(Killed):
        fitted(adam_in_minibatches(), 40, sink=first.sink, on_progress=end, checkpoint_every=10, **options)
    assert first.begun == [(0, 0)] and steps_of(first.rows) == [0, 6, 12, 18, 24]
    result = fitted(adam_in_minibatches(), 40, sink=second.sink, resume=True, **options)
    assert second.begun == [(20, 0)] and steps_of(second.rows) == [24, 30, 36, 40]
    assert second.rows[0] == first.rows[-1]
    assert [*first.rows[:-1], *second.rows] == result.rows
    assert all(type(value) is (int if name == "step" else float) for row in second.rows for name, value in row.items())
    for recorder in (first, second):
        assert [steps[-1] for steps in recorder.in_file] == steps_of(recorder.rows)


def test_a_sink_need_not_hear_of_beginnings_and_needs_no_folder():
    rows = []
    result = fitted(full_batch(), 5, sink=mjn.Sink(rows.append))
    assert rows == result.rows and len(rows) == 6


def test_of_several_processes_the_first_alone_writes_and_tells_its_sink(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "is_first", lambda: False)
    recorder, seen = Recorder(tmp_path), []
    result = fitted(full_batch(), 5, sink=recorder.sink, run_dir=tmp_path, on_progress=seen.append)
    assert not recorder.begun and not recorder.rows and not seen and not list(tmp_path.iterdir())
    assert len(result.rows) == 6 and jnp.isfinite(result.trace.loss).all()
