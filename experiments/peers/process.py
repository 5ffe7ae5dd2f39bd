"""A peer's process as the comparison sees it: start it, ask it, and never wait for it in vain."""

import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

# How long a process may take to answer.
PATIENCE_S = {"open": 300.0, "first": 300.0, "size": 120.0, "block": 60.0}


class PeerFailed(RuntimeError):
    """A peer that died, took too long or raised an error; the text is the reason."""


class Peer:
    """A peer's process as seen from here: ask it, and wait for the answer."""

    def __init__(self, module: str, workload: str, scratch: Path):
        """Start it; it opens the peer's file for the workload and then reads its pipe."""
        self.pipe, theirs = Pipe()
        self.errors = tempfile.TemporaryFile(dir=scratch)
        call = [sys.executable, "-m", "peers.worker", module, workload, str(theirs.fileno())]
        self.process = subprocess.Popen(
            call, env=environment(scratch), pass_fds=[theirs.fileno()], stdout=self.errors, stderr=self.errors
        )
        theirs.close()

    def answer(self, verb: str) -> Any:
        """What it answers, first of all to being opened.

        Raises:
            PeerFailed: it died, took too long or raised an error; in the first two cases it is gone.
        """
        try:
            if not self.pipe.poll(PATIENCE_S[verb]):
                self.close()
                raise PeerFailed(f"took longer than {PATIENCE_S[verb]:g} s ({verb})")
            done, answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            said = self._last_words()
            raise PeerFailed(f"died with exit code {self.close()}{said}") from error
        if not done:
            raise PeerFailed(answer)
        return answer

    def ask(self, verb: str, label: str) -> Any:
        """Tell it to do something with an arm, and wait for the answer; errors as for ``answer``."""
        try:
            self.pipe.send((verb, label))
        except OSError as error:
            raise PeerFailed("its process is gone") from error
        return self.answer(verb)

    def close(self) -> int:
        """End the process and return its exit code; one that is idle ends by itself when its pipe is closed."""
        self.pipe.close()
        self.errors.close()
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1]}" if said else ""


def environment(scratch: Path) -> dict[str, str]:
    """The environment of a peer's process: it finds the peers, and no program that was compiled before."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
