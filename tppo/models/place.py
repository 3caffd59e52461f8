import torch

from tppo.ranks.shard import shard


def place(model, fill, device, ranks, compute=None):
    empty = any(p.is_meta for p in model.parameters())
    if not empty:
        model.to(device)
    if compute is not None:
        shard(model, device, ranks, dtype=compute.dtype, offload=compute.cpu_offload)
    if empty:
        assert fill is not None
        model.to_empty(device="cpu" if compute is not None and compute.cpu_offload else device)
        fill(model)
def pick_device(name, ranks):
    return torch.device("cpu")
