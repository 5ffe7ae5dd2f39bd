"""The story of a run as a page: what its folder tells, and what its experiment shows of where it ended."""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.bench.comparison import as_ratio
from minijaxnet.goal import goal_of
from minijaxnet.report.curves import draw_curves
from minijaxnet.report.gradients import draw_errors, draw_precision, verdict_line
from minijaxnet.report.page import Page, Section, Table, Text, Verdict
from minijaxnet.report.rates import draw_ends
from minijaxnet.report.sections import Seen, Wanted, illustrated
from minijaxnet.report.thin import thin
from minijaxnet.report.timing import draw_compile_and_steady, draw_forest, draw_samples
from minijaxnet.report.told import Told
from minijaxnet.run.folder import CONFIG, SWEPT
from minijaxnet.run.log import METRICS, is_weight
from minijaxnet.verify.report import headline_of, subject_of

_MOST_ROWS = 200
_STATES = {"done": "ok", "diverged": "bad", "failed": "bad", "interrupted": "warning", "running": "warning"}

_COMPARED = {
    "faster": "is faster than",
    "slower": "is slower than",
    "same": "takes the same time as",
    "undecided": "was not told apart from",
}
_CHECKED = {"right": ("ok", "right"), "NOT RIGHT": ("bad", "WRONG"), "unchecked": ("warning", "unchecked")}


def tell(told: Told, shown: Sequence[Section] = (), notes: Sequence[str] = ()) -> Page:
    """The page of one run.

    Args:
        told: by its folder.
        shown: sections on what it came to, such as ``show`` makes them.
        notes: why something is not shown.
    """
    name = told.config.get("experiment", told.folder.name)
    devices = told.environment.get("devices")
    where = ", ".join(map(str, devices)) if isinstance(devices, list) and devices else "an unknown device"
    first = [section for section in shown if section.players]
    rest = [section for section in shown if not section.players]
    odd: list[str] = []

    def made(what: str, make: Callable[[], Iterable[Any]]) -> list[Any]:
        """A part of the page; a note where the folder holds something else than a run leaves."""
        try:
            return list(make())
        except Exception as error:
            odd.append(f"{what} can't be shown: {type(error).__name__}: {error}")
            return []

    sections = [*first, *made("The descent", lambda: [_descent(told)]), *rest]
    sections += [*made("The gradient", lambda: _gradient(told)), *made("The benchmark", lambda: _benchmark(told))]
    sections += made("What was run", lambda: [_what_was_run(told)])
    verdicts = made("How it went", lambda: _verdicts(told))
    command = made("The command", lambda: [command_of(told.config)])
    verdicts += [Verdict("neutral", note) for note in (*notes, *odd)]
    words = f"{told.folder.name}, on {where}, {told.environment.get('time_utc', 'at an unknown time')}"
    return Page(str(name), verdicts, sections, "".join(command), words)


def command_of(config: Mapping[str, Any]) -> str:
    """The command that repeats a run: with all flags that differ from the defaults, where the config tells those.

    >>> flags = {"steps": 3, "seed": 0}
    >>> command_of({"verb": "run", "file": "a.py", "flags": flags, "defaults": {"flags": {"steps": 5, "seed": 0}}})
    'minijaxnet run a.py --steps 3'
    """
    flags, defaults = [], config.get("defaults", {})
    for part, prefix in (("flags", ""), ("init", ""), ("data", "data-")):
        usual = defaults.get(part, {})
        for name, value in config.get(part, {}).items():
            if value != usual[name] if name in usual else value not in (None, ""):
                flags.append(_flag(prefix + name.replace("_", "-"), value))
    return " ".join(["minijaxnet", config["verb"], shlex.quote(str(config["file"])), *flags])


def _flag(name: str, value: Any) -> str:
    """A setting as it is typed.

    >>> _flag("seed", 0), _flag("report", False), _flag("runs", "my runs")
    ('--seed 0', '--no-report', "--runs 'my runs'")
    """
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(str(value))}"


def _verdicts(told: Told) -> Iterator[Verdict]:
    rows, result = told.rows, told.result
    at = f"step {rows[-1]['step']:,}" if rows else "the start"
    how = {
        "running": f"The run is under way, at {at}.",
        "interrupted": f"The run was stopped at {at}; minijaxnet resume {told.folder} goes on.",
        "diverged": f"The descent diverged at step {result.get('steps_taken', 0):,}.",
        "failed": f"The run failed: {result.get('error', 'nothing is known of why')}",
        "done": f"The descent took all {result.get('steps_taken', 0):,} steps.",
    }[told.state]
    if told.config["verb"] == "sweep" and told.state == "done":
        how = "All descents of the sweep were carried out."
    if result.get("status") == "FLAT":
        how = f"The descent is flat after {result['steps_taken']:,} steps."
    if result.get("status") == "STOPPED_EARLY":
        how = f"The descent was stopped early, after {result['steps_taken']:,} steps, since nothing became better."
    yield Verdict(_STATES[told.state], how)
    if best := result.get("kept_best"):
        goal = goal_of(str(told.config["flags"].get("keep_best")))
        words = f"The {goal} was {significant(best['value'])}, at step {best['step']:,}: these weights are kept."
        yield Verdict("neutral", words)
    if len(rows) > 1 and "train_loss" in rows[0]:
        first, last = rows[0], rows[-1]
        metrics = [name for name in last if f"test_{name}" in last and name != "loss"]
        rest = "".join(
            f"; {name} {significant(last[name])}, on test data {significant(last[f'test_{name}'])}" for name in metrics
        )
        yield Verdict(
            "neutral",
            f"The training loss went from {significant(first['train_loss'])} to {significant(last['train_loss'])}, "
            f"the test loss from {significant(first['test_loss'])} to {significant(last['test_loss'])}{rest}.",
        )
    if check := result.get("gradient_check"):
        kind, how = _CHECKED[headline_of(check)]
        yield Verdict(kind, f"The {subject_of(check)[0]} is {how}.")
    found = told.timing.get("step_comparison") or {}
    for arm, verdict in found.get("verdicts", {}).items():
        ratio = found["ratios"][arm]
        median, low, high = (as_ratio(ratio[name]) for name in ("median", "low", "high"))
        interval = f"{median} times the time, 95 % between {low} and {high}"
        doubt = "" if found["sound"] else " The baseline did not equal itself: measure again on a quieter machine."
        yield Verdict(
            "neutral" if found["sound"] else "warning",
            f"A step of {arm} {_COMPARED.get(verdict, _COMPARED['undecided'])} one of {found['baseline']}: "
            f"{interval}.{doubt}",
        )


def _descent(told: Told) -> Section:
    rows, result = told.rows, told.result
    if (told.folder / SWEPT).is_file():
        return _sweep(told)
    if not rows:
        return Section("Descent", "Nothing was logged.")
    names = [name for name in rows[-1] if name != "step" and not is_weight(name)]
    held = [of for of in ("validation", "test") if f"{of}_loss" in names]
    losses = [name for name in ("train_loss", *(f"{of}_loss" for of in held)) if name in names] or ["loss"]
    wanted: list[tuple[str, list[str]]] = [("Loss", losses), ("Gradient norm", ["gradient_norm"])]
    wanted += [
        (name, [name, *(f"{of}_{name}" for of in held)]) for name in names if f"test_{name}" in names and name != "loss"
    ]
    columns = list(dict.fromkeys(name for row in (rows[0], rows[-1]) for name in row))
    kept, words = rows, ""
    if len(rows) > _MOST_ROWS:
        at, _ = thin(np.arange(len(rows)), np.array([row.get("loss", np.nan) for row in rows], float), _MOST_ROWS)
        kept = [rows[int(i)] for i in at]
        words = f"The table shows {len(kept)} of {len(rows):,} rows, spikes among them; {METRICS} has all."
    table = Table("What was logged", columns, [[row.get(name) for name in columns] for row in kept])
    pictures = (
        Wanted(
            title,
            f"{title} over steps, from {significant(rows[0][of[0]])} to {significant(rows[-1][of[0]])}.",
            lambda axes, of=of: draw_curves(axes, told.rows, of, **end_of(result)),
        )
        for title, of in wanted
    )
    return illustrated("Descent", Seen(words, list(pictures), tables=[table]))


def end_of(result: Mapping[str, Any]) -> dict[str, int]:
    """The step at which a descent was flat or diverged, as ``draw_curves`` takes it; nothing if it ran out of steps.

    >>> end_of({"status": "FLAT", "steps_taken": 7}), end_of({"status": "OUT_OF_STEPS", "steps_taken": 7})
    ({'flat_at': 7}, {})
    """
    mark = {"FLAT": "flat_at", "DIVERGED": "diverged_at"}.get(str(result.get("status")))
    return {} if mark is None else {mark: result["steps_taken"]}


def _sweep(told: Told) -> Section:
    """Where the descents of a sweep ended."""
    with np.load(told.folder / SWEPT) as found:
        values = {name.removeprefix("axis_"): found[name] for name in found.files if name.startswith("axis_")}
        losses = found["loss"]
    alt = f"The loss at the end of {losses.size:,} descents, over {', '.join(values)}."
    picture = Wanted("Where the descents ended", alt, lambda axes: draw_ends(axes, values, losses), 3.4)
    best = told.result.get("best") or {}
    table = Table("Best", tuple(best), [tuple(best.values())])
    return illustrated("Descents", Seen("", [picture], tables=[table] if best else []))


def _gradient(told: Told) -> Iterator[Section]:
    check = told.result.get("gradient_check")
    if not check:
        return
    height = 1.6 + 0.25 * len(check["leaves"])
    wanted = {" against ".join(subject_of(check)).capitalize(): draw_errors}
    if any(leaf["precision_ratio"] is not None for leaf in check["leaves"].values()):
        wanted["Error in the working precision"] = draw_precision
    pictures = (
        Wanted(title, verdict_line(check), lambda axes, draw=draw: draw(axes, check), height)
        for title, draw in wanted.items()
    )
    verdicts = Table(
        "Verdicts",
        ("what", "verdict", "why"),
        [(name, verdict["state"], verdict.get("reason", "")) for name, verdict in check["verdicts"].items()],
    )
    leaves = list(check["leaves"].items())
    filled = {name for _, leaf in leaves for name, value in leaf.items() if not (value is None or value == "")}
    columns = [name for name in (leaves[0][1] if leaves else {}) if name in filled - {"path"}]
    columns = [name for name in columns if not isinstance(leaves[0][1][name], dict | list)]
    table = Table("Leaves", ("leaf", *columns), [(name, *(leaf.get(c) for c in columns)) for name, leaf in leaves])
    hints = "\n\n".join(map(str, check.get("hints", ())))
    yield illustrated("Gradient check", Seen(hints, list(pictures), tables=[verdicts, table]))


def _benchmark(told: Told) -> Iterator[Section]:
    found = told.timing.get("step_comparison")
    if not found:
        return
    source = told.comparison or told.timing
    tall = 1.3 + 0.35 * len(found["arms"])
    wanted = [
        Wanted("Which step is faster", "Ratios of step times, with intervals.", lambda a: draw_forest(a, source), tall),
        Wanted(
            "Compile and steady", "Times to compile and to step.", lambda a: draw_compile_and_steady(a, source), tall
        ),
    ]
    if told.comparison:
        alt = "The time of a step in each round, for each arm."
        wanted.append(
            Wanted("Samples in the order of time", alt, lambda axes: draw_samples(axes, source), 2.2 + tall / 2)
        )
    rows = []
    for name, arm in found["arms"].items():
        ratio = found["ratios"].get(name, {})
        interval = [ratio.get(part) for part in ("median", "low", "high")]
        rows.append((name, arm["compile_s"], arm["step_us"], *interval, found["verdicts"].get(name, "baseline")))
    columns = ("step", "compile s", "us a step", "ratio", "95 % from", "to", "verdict")
    yield illustrated("Benchmark", Seen("", wanted, tables=[Table("Steps", columns, rows)]))


def _what_was_run(told: Told) -> Section:
    flags = told.config.get("flags", {}) | told.config.get("init", {})
    flags |= {f"data {name}": value for name, value in told.config.get("data", {}).items()}
    settings = Table("Settings", ("setting", "value"), [(n, v) for n, v in flags.items() if v is not None])
    versions = Table("Versions", ("package", "version"), list(told.environment.get("versions", {}).items()))
    texts = [Text(CONFIG, json.dumps(told.config, indent=2))]
    texts += [Text("environment.json", json.dumps(told.environment, indent=2))] if told.environment else []
    log = told.folder / "log.txt"
    texts += [Text(log.name, log.read_text(encoding="utf-8", errors="replace"))] if log.is_file() else []
    return Section("What was run", "", (), (), [settings, versions], texts)
