"""Flags: numbers that no run can use, and what help says of them."""

import pytest
from kits.command import BY_HAND, call, run, unboxed


@pytest.mark.parametrize(
    ("verb", "flags", "words"),
    [
        ("run", "--steps -5", "steps: got -5; expected at least 0"),
        ("sweep", "--steps -5", "steps: got -5; expected at least 0"),
        ("check", "--steps -5", "steps: got -5; expected at least 0"),
        ("run", "--log-every 0", "log_every: got 0; expected at least 1"),
        ("run", "--checkpoint-every 0", "checkpoint_every: got 0; expected at least 1"),
        ("run", "--batch-size 0", "batch_size: got 0; expected at least 1"),
        ("run", "--batch-size 99", "batch_size: got 99; expected at most 8, the points there are"),
        ("sweep", "--block 0", "block: got 0; expected at least 1"),
        ("sweep", "--until-flat -1", "until_flat: got -1.0; expected a gradient norm, at least 0"),
        ("run", "--until-flat nan", "until_flat: got nan; expected a gradient norm, at least 0"),
        ("run", "--bench-seconds -1", "bench_seconds: got -1.0; expected a finite number, at least 0"),
        ("run", "--checkpoint-seconds inf", "checkpoint_seconds: got inf; expected a finite number, at least 0"),
        ("bench", "--seconds 0", "seconds: got 0.0; expected a positive number"),
        ("bench", "--save=", "save: got ''; expected a path"),
    ],
)
def test_a_number_that_no_run_can_use_is_refused_before_anything_is_announced(verb, flags, words, tmp_path):
    (tmp_path / "it.py").write_text("import jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn\n" + BY_HAND)
    called = call(verb, tmp_path / "it.py", *flags.split())
    assert (called.code, called.out, called.err) == (2, "", f"minijaxnet: error: {words}\n")


def test_an_empty_folder_for_runs_is_refused(tmp_path):
    called = run(tmp_path, BY_HAND, "--runs=")
    assert (called.code, called.out, called.err) == (2, "", "minijaxnet: error: runs: got ''; expected a path\n")


def test_help_of_sweep_says_what_a_range_is(tmp_path):
    text = unboxed(run(tmp_path, BY_HAND, "--help", verb="sweep").out)
    assert "A RANGE: a number, several with commas (0.1,0.3), or from:to:count" in text and "1e-3:1:16log" in text
    assert "--scale STR A RANGE, as for --learning-rate. (default: 1.0)" in text
