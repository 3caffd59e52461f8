"""Hardware and models of the rollout clock: data-sheet numbers and published model configurations.

Efficiency factors are assumptions, named and in one place (`Efficiency`); everything else is arithmetic.
"""

from dataclasses import dataclass, field, replace

BYTES_BF16 = 2


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: found {value}; expected a number above 0.")


@dataclass(frozen=True)
class Hardware:
    """One accelerator, as its data sheet says."""

    name: str
    peak_flops: float  # dense bf16 matrix products [flop/s]; NVIDIA's data sheets print twice that, with sparsity
    bandwidth: float  # of its memory [byte/s]
    memory: float  # [byte]
    link: float  # to its neighbours, both directions together [byte/s]
    source: str = ""  # where the numbers are from

    def __post_init__(self) -> None:
        for name in ("peak_flops", "bandwidth", "memory", "link"):
            _positive(f"Hardware.{name}", getattr(self, name))


HARDWARE = {
    h.name: h
    for h in (
        Hardware(
            "H800", 989.4e12, 3.35e12, 80e9, 400e9,
            "NVIDIA H800 Tensor Core GPU data sheet, SXM: the H100 with NVLink at 400 GB/s",
        ),
        Hardware(
            "H100", 989.4e12, 3.35e12, 80e9, 900e9,
            "NVIDIA H100 Tensor Core GPU data sheet, SXM5 (1,979 Tflop/s bf16 with sparsity)",
        ),
        Hardware(
            "H200", 989.4e12, 4.8e12, 141e9, 900e9,
            "NVIDIA H200 Tensor Core GPU data sheet, SXM5",
        ),
        Hardware(
            "A100", 312e12, 2.039e12, 80e9, 600e9,
            "NVIDIA A100 Tensor Core GPU data sheet, 80GB SXM (624 Tflop/s bf16 with sparsity)",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Efficiency:
    """Shares of the data sheet that software reaches, and fixed costs. Assumed, not measured: vary them."""

    bandwidth: float = 0.7  # share of the memory's rate
    link: float = 0.7  # share of the links' rate
    decode_flops: float = 0.5  # share of peak arithmetic (MFU) of decode steps
    prefill_flops: float = 0.5  # the same of prefill
    train_flops: float = 0.4  # the same of training
    decode_step_s: float = 0.005  # host and launch time of each decode step [s]
    prefill_call_s: float = 0.005  # host and launch time of each forward pass of prefill [s]
    step_s: float = 5.0  # fixed cost of each training step, whatever its size: wake, sleep, grading [s]
    kv_memory: float = 0.85  # share of the memory that weights, keys and values of the engine may fill
    prefill_call_tokens: int = 16384  # contexts share forward passes of prefill of this many tokens
    recompute: float = 1.0  # extra forward passes in a backward pass; 1 is full activation checkpointing
    network: float = 25e9  # rate at which one accelerator receives weights [byte/s]; half of a 400 Gb/s network card

    def __post_init__(self) -> None:
        for name in ("bandwidth", "link", "decode_flops", "prefill_flops", "train_flops", "kv_memory"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"Efficiency.{name}: found {getattr(self, name)}; expected a share in (0, 1].")
        for name in ("decode_step_s", "prefill_call_s", "step_s", "recompute"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Efficiency.{name}: found {getattr(self, name)}; expected 0 or more.")
        for name in ("prefill_call_tokens", "network"):
            _positive(f"Efficiency.{name}", getattr(self, name))


@dataclass(frozen=True)
class ModelProfile:
    """A decoder-only transformer with grouped-query attention and a gated feed-forward layer (Qwen2, Llama)."""

    name: str
    layers: int
    hidden: int  # width of the residual stream
    heads: int  # query heads of a layer
    kv_heads: int  # key and value heads of a layer
    intermediate: int  # width of the feed-forward layer
    vocab: int
    tied: bool  # the output layer is the embedding
    qkv_bias: bool = True  # biases on query, key and value (Qwen2)
    head_width: int | None = None  # of one attention head; None is hidden / heads
    bytes_per_weight: int = BYTES_BF16  # also of keys and values

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "intermediate", "vocab"):
            _positive(f"ModelProfile.{name}", getattr(self, name))
        if self.heads % self.kv_heads or (self.head_width is None and self.hidden % self.heads):
            raise ValueError(
                f"ModelProfile.heads: found {self.heads}; expected a multiple of kv_heads ({self.kv_heads}) "
                f"that divides hidden ({self.hidden})."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.hidden // self.heads

    @property
    def body_weights(self) -> int:
        """Number of weights in all matrix products of the layers."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.layers * (2 * self.hidden * q + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate)

    @property
    def output_weights(self) -> int:
        """Number of weights in the output layer."""
        return self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """Exact count of matrices, biases, norms, embedding, and of the output layer where it is not tied."""
        biases = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = (2 * self.layers + 1) * self.hidden
        return self.body_weights + biases + norms + self.output_weights * (1 if self.tied else 2)

    @property
    def weight_bytes(self) -> int:
        """Memory that all weights take [byte]."""
        return self.parameters * self.bytes_per_weight

    @property
    def decode_weight_bytes(self) -> int:
        """Memory of the weights that a decode step reads [byte]: all but the embedding, of which it needs few rows."""
        return (self.body_weights + self.output_weights) * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory that keys and values of one token take [byte]."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_weight

    @property
    def body_flops_per_token(self) -> int:
        """Arithmetic of the layers' matrix products in a forward pass, without attention [flop]."""
        return 2 * self.body_weights

    @property
    def output_flops_per_token(self) -> int:
        """Arithmetic of the output layer at one position [flop]."""
        return 2 * self.output_weights

    @property
    def attention_flops_per_key(self) -> int:
        """Arithmetic of one query with one key and its value in all layers [flop]."""
        return 4 * self.layers * self.heads * self.head_dim


# config.json of the models of these names on huggingface.co (Qwen/Qwen2.5-*, HuggingFaceTB/SmolLM2-135M).
MODELS = {
    m.name: m
    for m in (
        ModelProfile("Qwen2.5-0.5B", 24, 896, 14, 2, 4864, 151936, tied=True),
        ModelProfile("Qwen2.5-1.5B", 28, 1536, 12, 2, 8960, 151936, tied=True),
        ModelProfile("Qwen2.5-7B", 28, 3584, 28, 4, 18944, 152064, tied=False),
        ModelProfile("Qwen2.5-14B", 48, 5120, 40, 8, 13824, 152064, tied=False),
        ModelProfile("Qwen2.5-32B", 64, 5120, 40, 8, 27648, 152064, tied=False),
        ModelProfile("SmolLM2-135M", 30, 576, 9, 3, 1536, 49152, tied=True, qkv_bias=False),
        ModelProfile("toy-language", 3, 96, 4, 4, 256, 49, tied=True, bytes_per_weight=4),
    )
}


@dataclass(frozen=True)
class Cluster:
    """A model on accelerators, all of which generate and then all train (colocated, as `tppo` does)."""

    model: ModelProfile
    hardware: Hardware
    gpus: int = 64  # accelerators of the whole cluster
    tensor_parallel: int = 8  # accelerators that share one copy of the model while it generates
    efficiency: Efficiency = field(default_factory=Efficiency)

    def __post_init__(self) -> None:
        _positive("Cluster.gpus", self.gpus)
        _positive("Cluster.tensor_parallel", self.tensor_parallel)
        if self.gpus % self.tensor_parallel:
            raise ValueError(
                f"Cluster.gpus: found {self.gpus}; expected a multiple of tensor_parallel ({self.tensor_parallel})."
            )
        if self.kv_tokens < 1:
            room = self.hardware.memory * self.efficiency.kv_memory * self.tensor_parallel
            raise ValueError(
                f"Cluster.tensor_parallel: found {self.tensor_parallel}; expected room for the weights of "
                f"{self.model.name} ({self.model.weight_bytes / 1e9:.0f} GB) in {room / 1e9:.0f} GB; raise it."
            )

    @property
    def replicas(self) -> int:
        """Number of copies of the model that generate side by side."""
        return self.gpus // self.tensor_parallel

    @property
    def kv_tokens(self) -> int:
        """Number of tokens whose keys and values one replica holds."""
        room = self.hardware.memory * self.efficiency.kv_memory * self.tensor_parallel - self.model.weight_bytes
        return int(room // self.model.kv_bytes_per_token)

    @property
    def load_s(self) -> float:
        """Time of new weights from the trainer to every replica [s]; each accelerator receives its shard."""
        return self.model.weight_bytes / self.tensor_parallel / self.efficiency.network

    def with_efficiency(self, **changes: float) -> "Cluster":
        """The same cluster with other efficiency factors."""
        return replace(self, efficiency=replace(self.efficiency, **changes))  # type: ignore[arg-type]
