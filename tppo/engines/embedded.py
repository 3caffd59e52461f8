"""The embedded engine: batched decoding in this process with any policy model, no dependency beyond torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from tppo.engines.base import EngineBase
from tppo.engines.memory import EMBEDDED_ROWS
from tppo.engines.sampling import pick, uniforms
from tppo.errors import EngineError
from tppo.models.base import PolicyModel
from tppo.models.call import score_tokens
from tppo.types import Continuation, GenerationRequest, Sampling


class EmbeddedEngine(EngineBase):
    """Holds its own copy of the policy, as an engine in another process would.

    policy: copied, unless it is given away. max_rows: sequences decoded at a time; more requests are served in turns.
    prefill_tokens: most tokens, padding included, in one prefill call.
    """

    def __init__(
        self, policy: PolicyModel, *, max_rows: int = EMBEDDED_ROWS, prefill_tokens: int = 32768, given: bool = False
    ) -> None:
        self.policy = policy if given else copy.deepcopy(policy)
        self.policy.eval().requires_grad_(False)
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy weights in place. Raises EngineError unless every weight is given exactly under its own name."""
        own = dict(self.policy.weights())
        missing = set(own)
        with torch.no_grad():
            for name, tensor in named_tensors:
                if name not in own or own[name].shape != tensor.shape:
                    expected = tuple(own[name].shape) if name in own else "no such weight"
                    raise EngineError(f"weight {name!r} has shape {tuple(tensor.shape)}: the engine has {expected}")
                own[name].copy_(tensor)
                missing.discard(name)
        if missing:
            raise EngineError(f"weights not given, would be stale: {sorted(missing)}")

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """Continue every request by at most its budget. Keys and values live for this call only."""
        answers: dict[int, Continuation] = {}
        requests = list(requests)
        for request in requests:
            if not request.tokens or request.max_new_tokens < 1:
                raise EngineError(f"request {request.uid}: needs at least one context token and a budget of one")
        # Rows of like length share a prefill call, so little of it is padding.
        order = sorted(requests, key=lambda r: len(r.tokens))
        for i in range(0, len(order), self.max_rows):
            answers.update(self._serve(order[i : i + self.max_rows], sampling, done))
        return [answers[r.uid] for r in requests]

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """Log-probability of ``tokens[first:]``, at temperature 1."""
        return score_tokens(self.policy, tokens, first).tolist()

    def _serve(
        self, requests: list[GenerationRequest], sampling: Sampling, done: Callable[[Continuation], None] | None
    ) -> dict[int, Continuation]:
        device = next(self.policy.parameters()).device
        count, longest = len(requests), max(r.max_new_tokens for r in requests)
        state = self.policy.decode_state(count, max(len(r.tokens) + r.max_new_tokens for r in requests))
        hidden = torch.cat([self._prefill(state, requests, rows) for rows in self._prefill_batches(requests)])
        draws = np.zeros((count, longest))
        for row, r in enumerate(requests):
            draws[row, : r.max_new_tokens] = uniforms(sampling.seed, r.uid, r.position, r.max_new_tokens)
        u = torch.from_numpy(draws).to(device)
        budget = torch.tensor([r.max_new_tokens for r in requests], device=device)
        stop_ids = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
        tokens_out = torch.zeros(count, longest, dtype=torch.int64, device=device)
        logprobs_out = torch.zeros(count, longest, device=device)
        answers: dict[int, Continuation] = {}
        live = torch.arange(count, device=device)  # request served by each row of the state
        for j in range(longest):
            tokens, logprobs = pick(
                self.policy.logits(hidden), u[live, j], temperature=sampling.temperature, top_p=sampling.top_p
            )
            tokens_out[live, j], logprobs_out[live, j] = tokens, logprobs
            ended = torch.isin(tokens, stop_ids)
            over = ended | (budget[live] == j + 1)
            if bool(over.any()):
                for row, stopped in zip(live[over].tolist(), ended[over].tolist(), strict=True):
                    tokens_l, logprobs_l = tokens_out[row, : j + 1].tolist(), logprobs_out[row, : j + 1].tolist()
                    answer = Continuation(requests[row].uid, tuple(tokens_l), tuple(logprobs_l), stopped)
                    answers[answer.uid] = answer
                    if done is not None:
                        done(answer)
                # Close the gaps with rows from the end: only as many rows are copied as have finished.
                stay = int((~over).sum())
                if not stay:
                    break
                gaps = over[:stay].nonzero().squeeze(-1)
                movers = stay + (~over[stay:]).nonzero().squeeze(-1)
                state.move(movers, gaps)
                live[gaps], tokens[gaps] = live[movers], tokens[movers]
                live, tokens = live[:stay], tokens[:stay]
            hidden = state.step(tokens)
        return answers

    def _prefill_batches(self, requests: list[GenerationRequest]) -> list[range]:
        batches, first = [], 0
        for row in range(1, len(requests) + 1):
            if row == len(requests) or (row + 1 - first) * len(requests[row].tokens) > self.prefill_tokens:
                batches.append(range(first, row))
                first = row
        return batches

    def _prefill(self, state, requests: list[GenerationRequest], rows: range) -> torch.Tensor:  # type: ignore[no-untyped-def]
        device = next(self.policy.parameters()).device
        contexts = [torch.tensor(requests[row].tokens) for row in rows]
        lengths = torch.tensor([len(c) for c in contexts], device=device)
        ids = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True).to(device)
        return state.prefill(ids, lengths, rows.start)
