"""The study of public rules: right rules are not accused, awkward points included, and a wrong one is."""

import jax
import jax.numpy as jnp
import public_rules
import pytest
from kits.marks import slow


@pytest.mark.parametrize(
    ("name", "dtype", "point"),
    [
        ("nn.relu", "float32", "kinks"),
        *slow(
            ("nn.silu", "bfloat16", "edges"),
            ("nn.relu6", "bfloat16", "kinks"),
            ("nn.log1mexp", "float32", "edges"),
            ("jnp.logaddexp", "float32", "equal"),
            ("special.xlogy", "float64", "ordinary"),
            ("special.ndtr", "float32", "tails"),
            ("optax.scale_gradient", "float32", "zero"),
            ("optax.projection_simplex", "float32", "corner"),
        ),
    ],
)
def test_a_right_rule_is_not_accused(name, dtype, point):
    finding = public_rules.examine(name, public_rules.all_rules()[name], dtype, point)
    assert finding.report is not None, finding.trouble
    assert finding.report.ok, f"\n{finding.report}"
    assert public_rules.accusation(finding) == ""


def test_a_wrong_rule_is_accused_and_what_has_no_report_says_why():
    @jax.custom_jvp
    def cube(x):
        return x**3

    def no_reference(x):
        raise RuntimeError("not today")

    cube.defjvps(lambda g, ans, x: 2 * x**2 * g)
    points = {"ordinary": ([1.0, 2.0],)}
    wrong = public_rules.examine("cube", public_rules.Rule(cube, points), "float32", "ordinary")
    assert public_rules.row(wrong)[1 + public_rules.QUESTIONS.index("algebra")] == "F"
    assert public_rules.accusation(wrong).startswith("cube, float32, ordinary\n    algebra: ")
    raised = public_rules.examine("sine", public_rules.Rule(jnp.sin, points, no_reference), "float32", "ordinary")
    assert "the check raised: RuntimeError: not today" in public_rules.accusation(raised)
    log_ndtr = public_rules.Rule(jax.scipy.special.log_ndtr, points)
    refused = public_rules.examine("log_ndtr", log_ndtr, "bfloat16", "ordinary")
    assert refused.trouble.startswith("JAX refuses the call: TypeError")


def test_every_rule_has_points_that_become_arrays():
    for name, rule in public_rules.all_rules().items():
        assert rule.points, name
        for args in rule.points.values():
            assert all(leaf.size for leaf in public_rules.cast(args, "float32")), name
