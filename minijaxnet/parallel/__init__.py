"""Several devices in one or several processes: meshes, placement, and communication between processes."""

from minijaxnet.parallel.mesh import data_mesh
from minijaxnet.parallel.placement import divide_cpu, initialize, on_mesh, replicate, shard_batch, shard_state

__all__ = ["data_mesh", "divide_cpu", "initialize", "on_mesh", "replicate", "shard_batch", "shard_state"]
