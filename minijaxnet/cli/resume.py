"""``minijaxnet resume``: go on with a run where it stopped, to the numbers that it would have come to."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet.cli.begin import asked_again
from minijaxnet.cli.carry_out import carry_out
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import devices_asked
from minijaxnet.cli.sweep import carry_out_sweep
from minijaxnet.parallel import divide_cpu
from minijaxnet.run.folder import changes, environment, read_config, read_json, run_state

_USAGE = (
    "usage: minijaxnet resume RUN [--force] [--devices N]\n\nGo on with a run where its newest checkpoint is.\n\n"
    "  --force      even if the code or the config has changed since, or it is done\n"
    "  --devices N  over another number of devices, or all, to the same numbers but for rounding"
)


def main(arguments: Sequence[str]) -> int:
    """Go on with the run of a folder."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    force = "--force" in arguments
    named = [argument for argument in arguments if argument != "--force"]
    devices = None
    if "--devices" in named:
        at = named.index("--devices")
        number = "".join(named[at + 1 : at + 2])
        if number != "all" and (not number.isdecimal() or int(number) < 1):
            raise UsageError(f"resume: --devices: got {number or 'nothing'}; expected how many, at least 1, or all")
        devices = len(jax.devices()) if number == "all" else int(number)
        del named[at : at + 2]
    if len(named) != 1 or named[0].startswith("-"):
        raise UsageError(f"resume: got {' '.join(arguments) or 'nothing'}; expected the folder of one run, and --force")
    folder = Path(named[0])
    config = read_config(folder)
    if run_state(folder) == "done" and not force:
        raise UsageError(f"{folder}: this run is done; expected one that stopped (--force carries its end out again)")
    divide_cpu(devices_asked([*arguments, "--devices", str(config["flags"].get("devices", 1))]))
    asked = asked_again(folder, config)
    if devices is not None:
        asked = asked._replace(flags=dataclasses.replace(asked.flags, devices=devices))
    if (changed := changes(folder, asked.file)) and not force:
        raise UsageError(
            f"{folder}: got other code or another config than it was started with; expected the same "
            f"(--force goes on all the same)\n{changed}"
        )
    for name, then, now in _other_surroundings(folder):
        print(f"warning: {name} was {then}, now it is {now}: bits may differ", file=sys.stderr)

    def open_folder(data_sha256: str) -> contextlib.AbstractContextManager[Path]:
        if data_sha256 != config.get("data_sha256") and not force:
            raise UsageError(f"{folder}: got other data than it was started with; expected the same (or --force)")
        return contextlib.nullcontext(folder)

    return (
        carry_out_sweep(asked, open_folder) if config["verb"] == "sweep" else carry_out(asked, open_folder, resume=True)
    )


def _other_surroundings(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """What else than code and config bits may depend on, and has changed."""
    then, now = read_json(folder / "environment.json"), environment()
    for name, version in now["versions"].items():
        if then and then["versions"].get(name) != version:
            yield name, then["versions"].get(name), version
    for name in ("platform", "devices", "processor_count", "xla_flags"):
        if then and then.get(name) != now[name]:
            yield name, then.get(name), now[name]
