"""Which switches, XLA's flags above all, may make a step faster and leave its results alone; and which to suggest.

Left out are flags that let the compiler compute something else, such as ``xla_cpu_enable_fast_math`` or, on a GPU,
``xla_allow_excess_precision``: sums in another order and NaN that is overlooked lead a descent another way.
"""

import shlex
from collections.abc import Mapping, Sequence

from minijaxnet.bench.comparison import StepComparison
from minijaxnet.bench.intervals import Interval

# A loop that touches fewer bytes is compiled as one function; in any other, each operation is called by itself.
_SMALL_LOOPS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold="

# What is tried on a platform, {name: flag}, in groups of as many as may be in memory at once; mild values come first.
SWITCHES: Mapping[str, Sequence[Mapping[str, str]]] = {
    "cpu": (
        {
            "no small loops": f"{_SMALL_LOOPS}0",
            "small loops: to 4 KiB": f"{_SMALL_LOOPS}4096",
            "small loops: to 16 KiB": f"{_SMALL_LOOPS}16384",
            "small loops: to 64 KiB": f"{_SMALL_LOOPS}65536",
            "small loops: to 256 KiB": f"{_SMALL_LOOPS}262144",
        },
        {
            "products on one thread": "--xla_cpu_multi_thread_eigen=false",
            "products by YNNPACK": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT",
            "vectors of 128 bits": "--xla_cpu_prefer_vector_width=128",
            "vectors of 512 bits": "--xla_cpu_prefer_vector_width=512",
            "scheduler for concurrency": "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED",
            "no fusion emitters": "--xla_cpu_use_fusion_emitters=false",
            "no expensive LLVM passes": "--xla_llvm_disable_expensive_passes=true",
        },
    ),
    "gpu": (
        {
            "no command buffers": "--xla_gpu_enable_command_buffer=",
            "loops in command buffers": "--xla_gpu_enable_command_buffer=+WHILE",
            "loops double-buffered": "--xla_gpu_enable_while_loop_double_buffering=true",
            "no products by Triton": "--xla_gpu_enable_triton_gemm=false",
            "products by cuBLASLt": "--xla_gpu_enable_cublaslt=true",
            "no autotuning": "--xla_gpu_autotune_level=0",
        },
    ),
}


# What is no flag but may be tried beside them: an optimizer of optax that moves one long vector instead of each leaf.
FLATTENED = "optax.flatten"


def joined(present: str, flags: Sequence[str]) -> str:
    """The text of ``XLA_FLAGS`` with more flags behind those that are there; where two disagree, the later one counts.

    >>> joined("", ["--b=2"]), joined(" --a=1 ", ["--b=2"])
    ('--b=2', '--a=1 --b=2')
    """
    return " ".join([*present.split(), *flags])


def export_line(xla_flags: str) -> str:
    """What to type into a shell.

    >>> print(export_line("--a=1 --b=2"))
    export XLA_FLAGS="--a=1 --b=2"
    """
    quoted = shlex.quote(xla_flags) if set(xla_flags) & set('"$`\\!') else f'"{xla_flags}"'
    return f"export XLA_FLAGS={quoted}"


def winners(found: StepComparison, switches: Mapping[str, str]) -> list[str]:
    """The names of switches, ``{name: flag=value}``, that are faster than the baseline, the fastest first.

    Of several values of a flag only one is named, the mildest.
    """
    by_flag: dict[str, dict[str, Interval]] = {}
    for name, ratio in faster(found).items():
        by_flag.setdefault(switches[name].rpartition("=")[0], {})[name] = ratio
    return sorted(map(mildest, by_flag.values()), key=lambda name: found.ratios[name].median)


def faster(found: StepComparison) -> dict[str, Interval]:
    """The arms that are faster than the baseline, with the ratios of their times to its."""
    return {name: found.ratios[name] for name, verdict in found.verdicts.items() if verdict == "faster"}


def mildest(ratios: Mapping[str, Interval]) -> str:
    """Of ratios the first that cannot be told from the lowest: their intervals meet.

    The order is that of preference: a switch that is stronger than it has to be changes other programs for nothing.

    >>> mildest({"1": Interval(0.9, 0.8, 1.0), "2": Interval(0.5, 0.4, 0.6), "3": Interval(0.4, 0.3, 0.5)})
    '2'
    """
    best = min(ratios.values(), key=lambda ratio: ratio.median)
    return next(name for name, ratio in ratios.items() if ratio.low <= best.high)
