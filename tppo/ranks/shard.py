from tppo.ranks.ranks import device_of, full, full_weights, memory_tracker, put  # noqa
from tppo.ranks import ranks as _r
import types
def shard(model, device, ranks, *, dtype="float32", offload=False):
    _r.shard(model, types.SimpleNamespace(dtype=dtype, cpu_offload=offload), device)
def local(p):
    return p.to_local() if hasattr(p, "to_local") else p
