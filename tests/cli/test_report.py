"""run and report: a page of the run, which never disturbs it, and its pictures as files."""

import contextlib
import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from kits.stopped import mark_again

from minijaxnet.cli import main, report
from minijaxnet.report import pictures
from minijaxnet.report.record import command_of, read_record
from minijaxnet.run.lock import hold

LINE = """
"A line through points."
import jax, jax.numpy as jnp
import minijaxnet as mjn

def init(key, *, scale=1.0):
    return jnp.float32(4.0) * scale

def loss(weight, batch):
    return jnp.mean((weight * batch.x - batch.y) ** 2)

def data():
    return mjn.Batch(jnp.array([3.0]), jnp.array([10.0])), mjn.Batch(jnp.array([3.0]), jnp.array([10.0]))

experiment = mjn.Experiment(
    "line", init, loss, data, predict=lambda weight, x: weight * x,
    defaults=mjn.Settings(steps=10, learning_rate=0.01),
)
"""
NETWORK = """
import jax, jax.numpy as jnp, minijaxnet as mjn
net, error = mjn.mlp((2, 2, 1), bias=False), mjn.mean_squared_error
points = mjn.Batch(jnp.array([[2.0, 3.0], [1.0, 2.0]]), jnp.array([[13.0], [8.0]]))
by_hand = mjn.mlp_gradient((2, 2, 1), activation=jax.nn.relu, loss=error, bias=False)
experiment = mjn.Experiment(
    "net", net.init, mjn.objective(net, error), lambda: (points, points), predict=net.apply,
    value_and_gradient=by_hand, defaults=mjn.Settings(steps=10, learning_rate=0.01),
)
"""


WRONG = ("could not be", "cannot be shown", "cannot be played", "Only what")  # on a page that is as it should be


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where a run of the line was carried out, and what it printed."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "line.py").write_text(LINE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        assert main(["run", "line.py", "--bench-seconds", "0", "--seed", "3", "--scale", "0.5"]) == 0
    return folder, out.getvalue()


@pytest.fixture
def folder(ran, tmp_path, monkeypatch):
    """A copy of its folder, in a place of its own."""
    shutil.copytree(ran[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    [found] = Path("runs").iterdir()
    for path in found.rglob("config.json"):  # which says where the experiment is
        path.write_text(path.read_text(encoding="utf-8").replace(str(ran[0]), str(tmp_path)), encoding="utf-8")
    mark_again(found)
    return found


@pytest.fixture(scope="module")
def record(ran):
    """What the folder of the run holds, with its experiment."""
    [found] = (ran[0] / "runs").iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ran[0])
        return report._with_experiment(read_record(found), trust=False)


@pytest.fixture
def unrendered(monkeypatch):
    """Pictures are not drawn: that is what takes the time."""
    monkeypatch.setattr("minijaxnet.report.page.svg_of", lambda draw, name, height: "<svg></svg>")


def text_of(path):
    return Path(path).read_text(encoding="utf-8")


def test_a_run_leaves_a_page_with_the_lessons_numbers(ran, record):
    out, text = ran[1], text_of(record.folder / "report.html")
    assert f"page: runs/{record.folder.name}/report.html" in out
    assert "The descent took all 10 steps." in text and "<svg" in text and 'id="player' in text
    assert "minijaxnet run line.py --seed 3 --bench-seconds 0.0 --scale 0.5<" in text, "what was set, and no more"
    assert not [words for words in WRONG if words in text]
    assert [row["step"] for row in record.rows] == list(range(11))
    assert record.rows[0]["params"] == 2.0 and record.rows[1]["params"] == pytest.approx(2.24)


def test_the_command_on_the_page_repeats_the_run(folder):
    first = read_record(folder)
    verb, *rest = shlex.split(command_of(first.config))[1:]
    assert main([verb, *rest, "--no-report"]) == 0
    [again] = (path for path in Path("runs").iterdir() if path != folder)
    assert (folder / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    second = read_record(again).config
    assert first.config | {"flags": {}, "file_here": ""} == second | {"flags": {}, "file_here": ""}
    assert first.config["flags"] | {"report": False} == second["flags"]
    assert not (again / "report.html").exists()


def test_an_earlier_run_gets_its_page_and_its_pictures_as_files(folder, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "animate", lambda path, bowl, name: path.write_text(f"{name} at {bowl.stops[0]}"))
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--pictures", "made/here", "--format", "svg"]) == 0
    text = text_of(folder / "report.html")
    assert 'id="player' in text and not [words for words in WRONG if words in text]
    page, *files = capsys.readouterr().out.splitlines()
    assert page == f"page: {folder}/report.html"
    names = {"moments-of-the-descent.svg", "loss.svg", "gradient-norm.svg", "bowl.gif"}
    assert (
        {Path(file) for file in files} == {Path("made/here", name) for name in names} == {*Path("made/here").iterdir()}
    )
    assert all(text_of(file).startswith("<?xml") for file in files if file.endswith("svg"))
    assert text_of("made/here/bowl.gif") == "params at 2.0"


@pytest.mark.usefixtures("unrendered")
def test_of_another_experiment_or_of_none_only_what_the_folder_holds_is_shown(folder):
    Path("line.py").write_text(LINE.replace("10.0", "11.0"), encoding="utf-8")
    assert main(["report", str(folder), "--output", "other.html"]) == 0
    text = text_of("other.html")
    assert "Only what the folder holds is shown" in text and "have changed since" in text.replace("has", "have")
    assert 'id="player' not in text and "The descent took all 10 steps." in text
    config = json.loads(text_of(folder / "config.json"))
    (folder / "config.json").write_text(json.dumps(config | {"file_here": "nowhere.py"}))
    Path("line.py").unlink()
    assert main(["report", str(folder), "--output", "none.html"]) == 0
    assert "is not there" in text_of("none.html")


@pytest.mark.usefixtures("unrendered")
def test_several_runs_are_compared_on_one_page(folder):
    other = shutil.copytree(folder, folder.with_name("other"))
    config = json.loads(text_of(other / "config.json"))
    config["flags"]["learning_rate"] = 0.02
    (other / "config.json").write_text(json.dumps(config))
    rows = map(json.loads, text_of(other / "metrics.jsonl").splitlines())
    better = [json.dumps(row | {"test_loss": row["test_loss"] / 2}) for row in rows]
    (other / "metrics.jsonl").write_text("\n".join(better) + "\n")
    assert main(["report", str(folder), str(other)]) == 0
    text = text_of("report.html")
    assert "2 runs" in text and "is that of other" in text
    assert "What differs" in text and "learning_rate" in text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "under way"), ("interrupted", "was stopped at step 10"), ("failed", "OSError: no more")],
)
def test_a_run_that_is_not_done_has_a_page_too(folder, state, words):
    (folder / "result.json").unlink()
    (folder / "params.safetensors").unlink()
    if state == "failed":
        (folder / "result.json").write_text(json.dumps({"status": "FAILED", "error": "OSError: no more"}))
    with hold(folder) if state == "running" else contextlib.nullcontext():
        assert main(["report", str(folder)]) == 0
    text = text_of(folder / "report.html")
    assert words in text and "the run has not ended" in text


@pytest.mark.usefixtures("unrendered")
def test_a_folder_without_rows_has_a_page_that_says_so(folder):
    for name in ("metrics.jsonl", "result.json", "timing.json", "environment.json", "log.txt"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == 0
    assert "Nothing was logged." in text_of(folder / "report.html")


# --- What fails costs itself alone ------------------------------------------------------------------------------------


def test_without_matplotlib_there_is_no_page_and_it_is_said_what_to_install(folder, record, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    (folder / "report.html").unlink()
    with pytest.raises(ImportError, match=r'pictures need matplotlib: pip install "minijaxnet\[plot\]"'):
        report.write_page_of_outcome(folder, record.trained)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments are required: RUN"),
        (["--output"], "--output: expected one argument"),
        (["a", "--odd"], "unrecognized arguments: --odd"),
        (["a", "--pictures", "made", "--format", "jpeg"], "argument --format: invalid choice: 'jpeg' (choose from"),
    ],
)
def test_wrong_arguments_or_a_folder_without_a_run_are_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert "nowhere: there is no config.json" in capsys.readouterr().err


# --- From the command to the page -------------------------------------------------------------------------------------

GRADIENT = ("The gradient by hand is right.", "Gradient by hand against autodiff")
LOSS = ("From above", "From the side", "Predictions in the plane", "The network at a point")
STEPS = ("Which step is faster", "Samples in the order of time", "compile, in steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "command", "code", "titles"),
    [
        (LINE, "sweep --learning-rate 0.001:1:7log --seeds 2 --steps 30", 0, ["Where the descents ended"]),
        (LINE, "run --learning-rate 1 --steps 200 --bench-seconds 0", 1, ["The descent diverged at step"]),
        (NETWORK, "run --bench-seconds 0.2", 0, [*GRADIENT, *LOSS, *STEPS, "Largest errors on test data"]),
    ],
    ids=["a sweep", "a descent that diverged", "a network"],
)
def test_what_came_out_is_on_the_page(tmp_path, monkeypatch, text, command, code, titles):
    (tmp_path / "it.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    verb, *flags = command.split()
    assert main([verb, "it.py", *flags]) == code
    [folder] = Path("runs").iterdir()
    if verb == "sweep":
        assert main(["report", str(folder)]) == 0
    page = text_of(folder / "report.html")
    assert [title for title in titles if title not in page] == []
    assert not [words for words in WRONG if words in page]
    assert ('id="player' in page) == ("diverged" in titles[0])
