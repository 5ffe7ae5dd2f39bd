"""The finished blocks of a sweep in their folder."""

import numpy as np

from minijaxnet.run.blocks import blocks_below


def test_a_block_comes_back_unless_it_is_damaged_or_not_there(tmp_path):
    blocks_below(tmp_path / "blocks").save(0, {"loss": np.arange(3.0)})
    [path] = tmp_path.glob("blocks/*")
    again, like = blocks_below(tmp_path / "blocks"), {"loss": np.zeros(3)}
    assert again.size == 3 and again.load(0, like)["loss"].tolist() == [0, 1, 2] and again.load(3, like) is None
    path.write_bytes(path.read_bytes()[:-2])
    assert blocks_below(tmp_path / "blocks").load(0, like) is None
