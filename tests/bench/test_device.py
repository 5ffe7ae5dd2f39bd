"""What a GPU reports, here by stand-ins, and what is printed where there is none."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet import _machine
from minijaxnet.bench import compare, device
from minijaxnet.bench.bounds import limits
from minijaxnet.bench.cost import StepCost
from minijaxnet.bench.roofline import Roofline

DESCENT = mjn.gradient_descent(lambda weights, batch: jnp.sum((weights - batch) ** 2), 0.1)


def test_kernels_are_summed_by_name_the_longest_first_and_none_where_they_cannot_be_measured(monkeypatch):
    profiler = types.ModuleType("jax.experimental.mosaic.gpu.profiler")
    times = [("add", 0.001), ("gemm", 0.004), ("add", 0.002)]
    profiler.measure = lambda step, aggregate: lambda *arguments: (step(*arguments), times)
    package = types.ModuleType("jax.experimental.mosaic.gpu")
    package.profiler = profiler
    monkeypatch.setitem(sys.modules, "jax.experimental.mosaic.gpu", package)
    monkeypatch.setitem(sys.modules, "jax.experimental.mosaic.gpu.profiler", profiler)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (first, second) = device.kernels_of(lambda x: x + 1, 1.0)
    assert (first.name, first.launches, second.name, second.launches) == ("gemm", 1, "add", 2)
    np.testing.assert_allclose([first.device_s, second.device_s], [4e-6, 3e-6])

    def refused(step, aggregate):
        raise RuntimeError("another profiler is at work")

    profiler.measure = refused
    assert device.kernels_of(lambda x: x + 1, 1.0) == ()


def test_of_many_kernels_the_rest_is_summed():
    kernels = [device.Kernel("loop_" * 20 + str(i), 1, 1e-6) for i in range(20)]
    lines = device.kernel_table(kernels, 30e-6).splitlines()
    assert len(lines) == 2 + 8 + 1 + 1
    assert lines[-2].split() == ["12", "more", "12", "12", "60.0", "%"]
    assert "works 20 us of the 30 us" in lines[-1]


def test_a_step_of_many_kernels_is_bound_by_its_launches():
    cost = StepCost({"float32": 1000}, {}, 100, launches=6)
    found = limits(cost, 20e-6, Roofline("gpu: made up", {"float32": 1e13}, {10: 1e12}, 9e-6, launch_s=2e-6))
    assert found.binds == "launches"
    np.testing.assert_allclose(found.bound_s, 12e-6)
    assert "launches" in str(found) and "60.0 %" in str(found)


@pytest.fixture
def nvml(monkeypatch):
    """A GPU that reports its clock, which goes down."""
    library = types.ModuleType("pynvml")
    library.NVML_CLOCK_SM, library.handles = 1, []
    clocks = iter([1980, 1980, 1410, *[1600] * 10_000])
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetHandleByIndex = lambda index: library.handles.append(index) or index
    library.nvmlDeviceGetHandleByUUID = library.nvmlDeviceGetHandleByIndex
    library.nvmlDeviceGetClockInfo = lambda handle, kind: next(clocks)
    library.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4 | 0x20
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(device.jax, "devices", lambda: [types.SimpleNamespace(platform="gpu", local_hardware_id=1)])
    return library


def test_the_clock_is_that_of_the_device_that_jax_uses(nvml, monkeypatch):
    read = device.clock_reader()
    assert (read(), read()) == ((1980.0, "power and heat"), (1410.0, "power and heat"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    device.clock_reader()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    device.clock_reader()
    assert nvml.handles == [1, 5, "GPU-2"]
    nvml.nvmlInit = lambda: 1 / 0
    assert device.clock_reader() is None


def test_a_comparison_prints_how_the_clock_changed_and_that_products_have_fewer_digits(monkeypatch):
    clocks = iter([(1980.0, ""), (1410.0, "power"), *[(1600.0, "")] * 10_000])
    monkeypatch.setattr(compare, "clock_reader", lambda: lambda: next(clocks))
    found = mjn.compare_steps({"a": DESCENT, "b": DESCENT}, jnp.zeros(9), 1.0, baseline="a", seconds=0.3, width=1e-9)
    assert "the device's clock was between 1,410 and 1,980 MHz; limited by power" in found.conclusions()
    assert found.to_dict()["clocks"][0] == [1980.0, ""]
    note, products = _machine.product_note("gpu"), found.machine["products"]
    assert note in dataclasses.replace(found, machine={"products": note}).conclusions()
    assert products == _machine.product_note(jax.default_backend()) and (products or note not in str(found))


@pytest.mark.parametrize(
    ("setting", "gpu", "tpu", "cpu"),
    [
        (None, 10, 7, 23),
        ("bfloat16", 10, 7, 23),
        ("tensorfloat32", 10, 14, 23),
        ("highest", 23, 23, 23),
        ("BF16_BF16_F32", 7, 7, 7),
        ("F32_F32_F32", 23, 23, 23),
    ],
)
def test_how_many_digits_a_product_has_by_the_setting(setting, gpu, tpu, cpu):
    with jax.default_matmul_precision(setting):
        for platform, bits in (("gpu", gpu), ("tpu", tpu), ("cpu", cpu)):
            assert _machine.product_epsilon("float32", platform) == 2.0**-bits
            assert _machine.product_epsilon("float64", platform) == 2.0**-52
            assert bool(_machine.product_note(platform)) == (bits < 23)
