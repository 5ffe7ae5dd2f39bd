"""The finished blocks of a sweep as checkpoints, so that a sweep that was stopped can be resumed."""

import re
from pathlib import Path
from typing import Any

import jax

from minijaxnet._files import own_folder
from minijaxnet._types import PyTree
from minijaxnet.run.checkpoint import load_checkpoint, save_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.sweeps import Blocks

BLOCKS = "blocks"
_NAME = re.compile(r"from-(\d+)-size-(\d+)\.safetensors")


def blocks_below(folder: Path, *, keep: bool = True) -> Blocks:
    """The store of blocks in a folder, which is made when the first block is saved; damaged blocks are ignored.

    Args:
        folder: of the blocks.
        keep: whether blocks are saved; False if the run's folder is on another machine.
    """
    names = [_NAME.fullmatch(path.name) for path in folder.glob("*")]
    sizes = {int(name[2]) for name in names if name}
    size = sizes.pop() if len(sizes) == 1 else None
    kept = {int(name[1]): folder / name[0] for name in names if name and size is not None}

    def load(first: int, like: PyTree) -> Any:
        if first not in kept:
            return None
        try:
            return load_checkpoint(kept[first], like)
        except (CheckpointError, OSError):
            return None

    def save(first: int, output: Any) -> None:
        if not keep:
            return
        own_folder(own_folder(folder.parent) / folder.name)
        [length, *_] = {len(leaf) for leaf in jax.tree.leaves(output)}
        save_checkpoint(folder / f"from-{first}-size-{length}.safetensors", output, step=first)

    return Blocks(size, load, save)
