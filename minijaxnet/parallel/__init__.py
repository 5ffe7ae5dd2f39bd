"""Several devices, in one process or in several: meshes, placement, and what processes tell one another."""

from minijaxnet.parallel.mesh import data_mesh
from minijaxnet.parallel.placement import divide_cpu, initialize, on_mesh, replicate, shard_batch, shard_state

__all__ = ["data_mesh", "divide_cpu", "initialize", "on_mesh", "replicate", "shard_batch", "shard_state"]
