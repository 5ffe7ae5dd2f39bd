"""The first lines of a page: how a run ended, what it learned, and what its gradient check and its timing found."""

from collections.abc import Iterator

from minijaxnet._tables import significant
from minijaxnet.bench.comparison import as_ratio
from minijaxnet.goal import goal_of
from minijaxnet.report.page import Verdict
from minijaxnet.report.record import RunRecord
from minijaxnet.verify.report import headline_of, subject_of

_STATES = {"done": "ok", "diverged": "bad", "failed": "bad", "interrupted": "warning", "running": "warning"}
_COMPARED = {"faster": "is faster than", "slower": "is slower than", "same": "takes the same time as"}
_CHECKED = {"right": ("ok", "right"), "NOT RIGHT": ("bad", "WRONG"), "unchecked": ("warning", "unchecked")}


def verdicts_of(record: RunRecord) -> Iterator[Verdict]:
    """What came out of a run, in sentences."""
    yield Verdict(_STATES[record.state], _how_it_ended(record))
    if best := record.result.get("kept_best"):
        goal = goal_of(str(record.config["flags"].get("keep_best")), "keep_best")
        words = f"The {goal} was {significant(best['value'])}, at step {best['step']:,}: these weights are kept."
        yield Verdict("neutral", words)
    if len(record.rows) > 1 and "train_loss" in record.rows[0]:
        yield Verdict("neutral", _what_it_learned(record))
    if check := record.result.get("gradient_check"):
        kind, word = _CHECKED[headline_of(check)]
        yield Verdict(kind, f"The {subject_of(check)[0]} is {word}.")
    if record.comparison:
        yield from _what_was_timed(record.comparison["found"])


def _how_it_ended(record: RunRecord) -> str:
    result = record.result
    taken = f"{result.get('steps_taken', 0):,}"
    if record.state == "failed":
        return f"The run failed: {result.get('error', 'the reason is not known')}"
    if record.state == "diverged":
        return f"The descent diverged at step {taken}."
    if record.state in ("running", "interrupted"):
        at = f"step {record.rows[-1]['step']:,}" if record.rows else "the start"
        if record.state == "running":
            return f"The run is under way, at {at}."
        return f"The run was stopped at {at}; minijaxnet resume {record.folder} continues it."
    if record.config["verb"] == "sweep":
        return "The sweep has run all its descents."
    if result.get("status") == "FLAT":
        return f"The descent is flat after {taken} steps."
    if result.get("status") == "STOPPED_EARLY":
        return f"The descent was stopped early, after {taken} steps, because nothing became better."
    return f"The descent took all {taken} steps."


def _what_it_learned(record: RunRecord) -> str:
    first, last = record.rows[0], record.rows[-1]
    train, test = (
        f"from {significant(first[name])} to {significant(last[name])}" for name in ("train_loss", "test_loss")
    )
    metrics = [name for name in last if f"test_{name}" in last and name != "loss"]
    rest = (f"; {name} {significant(last[name])}, on test data {significant(last[f'test_{name}'])}" for name in metrics)
    return f"The training loss went {train}, the test loss {test}{''.join(rest)}."


def _what_was_timed(found: dict) -> Iterator[Verdict]:
    doubt = "" if found["sound"] else " The baseline did not equal itself: measure again on a quieter machine."
    for arm, verdict in found["verdicts"].items():
        median, low, high = (as_ratio(found["ratios"][arm][name]) for name in ("median", "low", "high"))
        compared = f"A step of {arm} {_COMPARED.get(verdict, 'cannot be told from')} one of {found['baseline']}"
        interval = f"{median} times the time, 95 % between {low} and {high}"
        yield Verdict("neutral" if found["sound"] else "warning", f"{compared}: {interval}.{doubt}")
