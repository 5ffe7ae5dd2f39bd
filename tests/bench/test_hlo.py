"""What is read from a compiled program: its launches, and whether XLA made its loop one function."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kits.steps import mlp_step

from minijaxnet.bench.hlo import folded_loop, launches_of

HLO = """HloModule jit_step

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add = f32[4]{0} add(%p, %p)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %x = f32[4]{0} get-tuple-element(%p.1), index=1
  %fusion.2 = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %copy = s32[] copy(%i)
  ROOT %t = (s32[], f32[4]{0}) tuple(%copy, %fusion.2)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %c = pred[] compare(%p, %p)
}

%buffer (p: f32[4], q: f32[4,4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  %gemm = (f32[4,4]{1,0}, s8[64]{0}) custom-call(%p.2, %p.2), custom_call_target="__cublas$gemm"
  ROOT %fusion.3 = f32[4]{0} fusion(%p.2), kind=kLoop, calls=%fused
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %called = f32[4]{0} call(%a), to_apply=%buffer
  %loop = (s32[], f32[4]{0}) while(%called), condition=%condition, body=%body
  %either = f32[4]{0} conditional(%loop, %a, %a), branch_computations={%fused, %buffer}
  ROOT %fusion.1 = f32[4]{0} fusion(%either), kind=kLoop, calls=%fused
}
"""


def test_launches_are_fusions_and_library_calls_also_those_of_a_command_buffer_a_loop_and_a_branch():
    assert launches_of(HLO) == 2 + 2 + (1 + 2) + 1


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def sines(x):
    return lax.fori_loop(0, 50, lambda _, x: jnp.sin(x), x)


LARGE = np.ones((200, 200), np.float32)
# A small loop inside of a large one, and beside a large one that is in a branch.
NOT_ALL = (
    lambda x, m: lax.fori_loop(0, 99, lambda _, c: (sines(c[0]), jnp.tanh(c[1] @ c[1])), (x, m)),
    lambda x, m: (sines(x), lax.cond(x > 0, lambda m: lax.fori_loop(0, 99, lambda _, m: m @ m, m), jnp.cos, m)),
)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only the CPU folds loops")
def test_a_loop_is_folded_where_it_is_small_and_no_other_loop_is_left():
    for is_folded, (step, state, batch) in {True: mlp_step((2, 2, 1), 4), False: mlp_step((64, 128, 10), 128)}.items():

        def repeat(state, batch, n, step=step):
            return lax.fori_loop(0, n, lambda _, s: step(s, batch)[0], state)

        assert folded_loop(compiled(repeat, state, batch, 5)) is is_folded
    for function in NOT_ALL:
        program = compiled(function, 1.0, LARGE)
        assert "xla_cpu_small_call" in program.as_text() and folded_loop(program) is False
    assert folded_loop(compiled(jnp.sin, 1.0)) is False, "there is no loop"


def test_only_a_cpu_folds_loops():
    gpu = SimpleNamespace(device_set=frozenset([type("Device", (), {"platform": "gpu"})()]))
    assert folded_loop(SimpleNamespace(input_shardings=(gpu,), output_shardings=(gpu,))) is None
