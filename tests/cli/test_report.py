"""run and report: a page of what came out, which never disturb a run."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from minijaxnet.cli import main
from minijaxnet.report import story
from minijaxnet.report.page import Verdict
from minijaxnet.report.shown import bowl, predictions, stops
from minijaxnet.run.lock import hold

LINE = """
"A line through points."
import jax, jax.numpy as jnp
import minijaxnet as mjn

def init(key, *, scale=1.0):
    return jnp.float32(2.0) * scale

def loss(weight, batch):
    return jnp.mean((weight * batch.x - batch.y) ** 2)

def data():
    return mjn.Batch(jnp.array([3.0]), jnp.array([10.0])), mjn.Batch(jnp.array([3.0]), jnp.array([10.0]))

experiment = mjn.Experiment(
    "line", init, loss, data, predict=lambda weight, x: weight * x,
    defaults=mjn.Settings(steps=10, learning_rate=0.01),
)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "line.py").write_text(LINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(*flags):
    code = main(["run", "line.py", "--bench-seconds", "0", *map(str, flags)])
    return code, sorted(Path("runs").glob("*"))[-1]


def told(folder):
    return story.told_by(folder)


def test_a_run_leaves_a_page_with_the_lessons_numbers(here, capsys):
    code, folder = run()
    assert code == 0 and f"page: {folder}/report.html" in capsys.readouterr().out
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "The descent took all 10 steps." in text and "<svg" in text and 'id="player' in text
    assert "minijaxnet run line.py --steps 10 --learning-rate 0.01" in text
    rows = told(folder).rows
    assert [row["step"] for row in rows] == list(range(11))
    assert rows[0]["params"] == 2.0 and rows[1]["params"] == pytest.approx(2.24)


def test_the_command_on_the_page_repeats_the_run(here):
    _, folder = run("--no-report", "--seed", 3, "--scale", 0.5)
    verb, *rest = shlex.split(story.command_of(told(folder).config))[1:]
    assert main([verb, *rest]) == 0
    first, second = sorted(Path("runs").glob("*"))
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert told(first).config == told(second).config


def test_the_player_shows_what_was_recorded(here):
    _, folder = run()
    module = sys.modules["minijaxnet.cli.report"]
    known = module._known(folder, told(folder).config)
    found = bowl(told(folder), known)
    np.testing.assert_array_equal(found.stops, np.float32([row["params"] for row in told(folder).rows]))
    assert found.slopes[0] == -24 and found.stop_losses[0] == 16
    [player] = stops(told(folder), known).players
    assert player.curvature == pytest.approx(18) and player.learning_rate == 0.01
    assert player.stops.steps[0] == pytest.approx(0.24)
    [table] = predictions(told(folder), known).tables
    assert table.rows[0][2] == 10.0


def test_an_earlier_run_gets_its_page_and_another_experiment_only_what_the_folder_holds(here, capsys):
    _, folder = run("--no-report")
    assert not (folder / "report.html").exists()
    assert main(["report", str(folder)]) == 0
    whole = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="player' in whole
    (here / "line.py").write_text(LINE.replace("10.0", "11.0"), encoding="utf-8")
    assert main(["report", str(folder), "--output", "other.html"]) == 0
    text = Path("other.html").read_text(encoding="utf-8")
    assert "Only what the folder holds is shown" in text and "have changed since" in text.replace("has", "have")
    assert 'id="player' not in text and "The descent took all 10 steps." in text
    (here / "line.py").unlink()
    assert main(["report", str(folder), "--output", "none.html"]) == 0
    assert "is not there" in Path("none.html").read_text(encoding="utf-8")


def test_a_sweep_has_a_page(here):
    assert main(["sweep", "line.py", "--learning-rate", "0.001:1:7log", "--seeds", "2", "--steps", "30"]) == 0
    [folder] = Path("runs").glob("*")
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Where the descents ended" in text and "could not be" not in text and "Only what" not in text


def test_several_runs_are_compared_on_one_page(here):
    folders = [run("--no-report", "--learning-rate", rate)[1] for rate in (0.01, 0.02)]
    assert main(["report", *map(str, folders)]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "2 runs" in text and f"is that of {folders[1].name}" in text
    assert "What differs" in text and "learning_rate" in text


@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "under way"), ("interrupted", "was stopped at step 10"), ("failed", "OSError: no more")],
)
def test_a_run_that_is_not_done_has_a_page_too(here, state, words):
    _, folder = run("--no-report")
    (folder / "result.json").unlink()
    (folder / "params.safetensors").unlink()
    if state == "failed":
        (folder / "result.json").write_text(json.dumps({"status": "FAILED", "error": "OSError: no more"}))
    if state == "running":
        with hold(folder):
            assert main(["report", str(folder)]) == 0
    else:
        assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert words in text and "the run has not ended" in text


def test_a_folder_without_rows_has_a_page_that_says_so(here):
    _, folder = run("--no-report")
    for name in ("metrics.jsonl", "result.json", "timing.json", "environment.json", "log.txt"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == 0
    assert "Nothing was logged." in (folder / "report.html").read_text(encoding="utf-8")


def test_a_descent_that_diverged_is_drawn_and_said(here, capsys):
    code, folder = run("--learning-rate", 1.0, "--steps", 200)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert code == 1 and "The descent diverged at step" in text and "could not be" not in text


def test_without_matplotlib_a_run_ends_as_ever_and_says_what_to_install(here, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    code, folder = run()
    assert code == 0 and not (folder / "report.html").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if "report.html" in line]
    assert said == ['no report.html: pictures need matplotlib: pip install "minijaxnet[plot]"']


def test_a_picture_that_fails_costs_itself_alone(here, monkeypatch):
    def fails(*arguments, **options):
        raise ZeroDivisionError("no such <picture>")

    monkeypatch.setattr(story, "draw_curves", fails)
    _, folder = run()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "could not be drawn: ZeroDivisionError: no such &lt;picture&gt;" in text and 'id="player' in text


NETWORK = """
"A network of six weights."
import jax, jax.numpy as jnp
import minijaxnet as mjn

net = mjn.mlp((2, 2, 1), bias=False)
points = mjn.Batch(jnp.array([[2.0, 3.0], [1.0, 2.0]]), jnp.array([[13.0], [8.0]]))
experiment = mjn.Experiment(
    "net", net.init, mjn.objective(net, mjn.mean_squared_error), lambda: (points, points), predict=net.apply,
    value_and_gradient=mjn.mlp_gradient((2, 2, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False),
    defaults=mjn.Settings(steps=10, learning_rate=0.01),
)
"""


def test_a_networks_page_has_its_gradient_check_its_loss_its_graph_and_its_errors(here):
    (here / "line.py").write_text(NETWORK, encoding="utf-8")
    code, folder = run("--bench-seconds", "0.2")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert code == 0 and "could not be" not in text and 'id="player' not in text
    gradient = ("The gradient by hand is right.", "Gradient by hand against autodiff")
    loss = ("From above", "From the side", "Predictions in the plane", "The network at a point")
    steps = ("Which step is faster", "Samples in the order of time", "Compile and steady")
    for title in (*gradient, *loss, *steps, "Largest errors on test data"):
        assert title in text, title


def test_the_steps_of_a_player_are_those_of_the_log(here):
    _, folder = run("--log-every", 3, "--no-report")
    module = sys.modules["minijaxnet.cli.report"]
    [player] = stops(told(folder), module._known(folder, told(folder).config)).players
    assert player.at.tolist() == [0, 3, 6, 9, 10]
    assert np.isnan(player.stops.steps).tolist() == [True, True, True, False, True]  # only 9 and 10 are neighbours


def test_predictions_that_fail_cost_their_section_alone(here):
    (here / "line.py").write_text(LINE.replace("weight * x,\n", "1 / 0,\n"), encoding="utf-8")
    code, folder = run()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert code == 0 and "This could not be shown: ZeroDivisionError" in text and 'id="player' in text


def test_a_page_that_cannot_be_written_takes_nothing_from_the_run(here, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("minijaxnet.cli.report.replace_file", full)
    code, folder = run()
    assert code == 0 and "no report.html: OSError" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["steps_taken"] == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments are required: RUN"),
        (["--output"], "--output: expected one argument"),
        (["a", "--odd"], "unrecognized arguments: --odd"),
    ],
)
def test_what_is_no_run_has_no_page(here, capsys, arguments, words):
    assert main(["report", "nowhere"]) == 2
    assert "nowhere: there is no config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "loss": float("nan"), "gradient_norm": float("inf"), "train_loss": -1.0, "test_loss": -1.0}],
        [
            {"step": i, "loss": 1.0, "gradient_norm": 0.0, "train_loss": 1.0, "test_loss": float("nan")}
            for i in range(9)
        ],
        [{"step": i, "loss": -i, "gradient_norm": 10.0**-i, "a<b>$_": 1, "test_a<b>$_": 2} for i in range(300)],
    ],
    ids=["one that is not finite", "no variance", "negative, and names with markup"],
)
def test_whatever_was_logged_is_drawn(here, rows):
    _, folder = run("--no-report")
    page = story.tell(told(folder)._replace(rows=rows))
    [section] = [section for section in page.sections if section.title == "Descent"]
    assert len(section.pictures) >= 2 and "could not" not in section.words
    assert len(section.tables[0].rows) <= 200 + 2


def test_many_rows_are_thinned_and_a_spike_stays(here):
    _, folder = run("--no-report")
    rows = [{"step": i, "loss": 1.0, "gradient_norm": 1.0} for i in range(200_000)]
    rows[123_456]["loss"] = 77.0
    page = story.tell(told(folder)._replace(rows=rows))
    [section] = [section for section in page.sections if section.title == "Descent"]
    assert 77.0 in {row[1] for row in section.tables[0].rows} and len(section.tables[0].rows) <= 200
    assert sum(len(picture.image) for picture in section.pictures) < 1_000_000


def test_verdicts_say_what_was_found(here):
    _, folder = run("--no-report")
    result = {"status": "FLAT", "steps_taken": 7, "gradient_check": {"ok": False, "verdicts": {}, "leaves": {}}}
    assert Verdict("bad", "The gradient by hand is WRONG.") in story.tell(told(folder)._replace(result=result)).verdicts
