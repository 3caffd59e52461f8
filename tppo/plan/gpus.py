"""Memory of accelerators, as their data sheets say."""

from __future__ import annotations

from tppo.errors import ConfigError

GB = 10**9
# NVIDIA's data sheets: H800 and H100 Tensor Core GPU (SXM5), H200 Tensor Core GPU (SXM5), A100 80GB Tensor Core GPU
# (SXM4). Drivers report a few per cent more: 80 GB on paper are often 85e9 bytes.
GPUS = {"A100": 80 * GB, "H100": 80 * GB, "H800": 80 * GB, "H200": 141 * GB}
"""Name to memory [byte]."""


def gpu_name(name: str) -> str:
    """As the table spells it. Raises ConfigError for an accelerator that is not in it.

    >>> gpu_name("h800")
    'H800'
    """
    if name.upper() not in GPUS:
        known = ", ".join(key.lower() for key in GPUS)
        raise ConfigError("gpu", name, f"one of {known}", "for another one, name the nearest and give --gpu-memory")
    return name.upper()
