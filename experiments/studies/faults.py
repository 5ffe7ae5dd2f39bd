"""Faults: the same ones injected into minijaxnet and into other ways to train networks and keep checkpoints.

    pip install -e ".[all,peers]"
    python experiments/studies/faults.py --peers npz,orbax --seed 3

A fault is survived if the tool ends, within five seconds and without harm to a file, in an error that names the
argument, the leaf or the file and what is wrong; or in the right result, bit for bit. A fault that is injected many
times (200 flipped bits, SIGKILL at many moments) is survived if each of them is. Ours must use exact words; a peer need
only name the thing. What a tool does not offer is not counted. Tools that are not installed are left out.
"""

import argparse
import time

from faulty import TOOLS
from faulty.faults import FAULTS
from faulty.judge import Outcome
from faulty.worker import Worker

from minijaxnet._tables import text_table

Outcomes = dict[tuple[str, str], Outcome]


def inject_all(tool: str, *, seed: int, kills: int) -> Outcomes:
    """Each fault, one after the other.

    Raises:
        ImportError: the tool is not installed.
    """
    worker = Worker(tool)
    try:
        return {
            (group, fault): worker.ask(group, fault, seed=seed, kills=kills)
            for group, faults in FAULTS.items()
            for fault in faults
        }
    finally:
        worker.close()


def score(outcomes: Outcomes, group: str | None = None) -> str:
    """How many were survived, of those that apply.

    >>> score({("inputs", "a"): Outcome(True, 1, 0, ""), ("inputs", "b"): Outcome(None, 0, 0, "it trains nothing")})
    '1/1'
    """
    counted = [
        outcome.survived
        for (of_group, _), outcome in outcomes.items()
        if of_group == group or group is None
        if outcome.survived is not None
    ]
    return f"{sum(counted)}/{len(counted)}" if counted else "-"


def table(found: dict[str, Outcomes]) -> str:
    """Tools by groups of faults."""
    rows = [(tool, *(score(outcomes, group) for group in FAULTS), score(outcomes)) for tool, outcomes in found.items()]
    return text_table(("survived", *FAULTS, "all"), rows)


def failures(tool: str, outcomes: Outcomes) -> str:
    """What a tool did not survive."""
    lines = [f"\n{tool} did not survive:"]
    for (group, fault), outcome in outcomes.items():
        if outcome.survived is False:
            often = f" ({outcome.failed} of {outcome.trials})" if outcome.trials > 1 else ""
            lines.append(f"  {group}: {fault}{often}: {outcome.why}")
    return "\n".join(lines if len(lines) > 1 else [f"\n{tool} survived all."])


def main() -> None:
    """Print the table, and what each tool failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=",".join(list(TOOLS)[1:]), help="some of %(default)s, or none")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--kills", type=int, default=100, help="how often a run of ours is killed")
    parser.add_argument("--peer-kills", type=int, default=12, help="how often one of a peer's is")
    options = parser.parse_args()
    peers = [] if options.peers in ("", "none") else options.peers.split(",")
    if unknown := set(peers) - set(TOOLS):
        parser.error(f"--peers: got {', '.join(sorted(unknown))}; expected some of {', '.join(list(TOOLS)[1:])}")
    found: dict[str, Outcomes] = {}
    for tool in dict.fromkeys(("minijaxnet", *peers)):
        kills, began = options.kills if tool == "minijaxnet" else options.peer_kills, time.monotonic()
        try:
            found[tool] = inject_all(tool, seed=options.seed, kills=kills)
        except ImportError as error:
            print(f"{tool}: not installed: {error}", flush=True)
            continue
        print(f"{tool}: {score(found[tool])} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{table(found)}")
    for tool, outcomes in found.items():
        print(failures(tool, outcomes))
    print(f"\nfaults survived: {score(found['minijaxnet'])}")


if __name__ == "__main__":
    main()
