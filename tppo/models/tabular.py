"""A policy and a critic that are tables over the states of a token MDP, with the same interface as a transformer.

The state is a function of the tokens so far, as in a language model: the prompt's single token names the start state
and every response token moves along ``next_state``. So the loop, the engine and the losses cannot tell a table from a
transformer, and what they do can be held against exact answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tppo.models.base import CriticModel, Model, PolicyModel


class _StateTracker(Model):
    """Follows states along tokens. Token ids: 0..A-1 act; A + s is the prompt 'start in state s'."""

    next_state_SA: torch.Tensor

    def __init__(self, next_state_SA: torch.Tensor) -> None:
        """next_state_SA: int64 [S, A]; a negative entry ends the response."""
        super().__init__()
        # Ended responses sit in any valid state: nothing after a stop token is ever read.
        self.register_buffer("next_state_SA", next_state_SA.clamp(min=0), persistent=False)
        self.num_states, self.num_tokens = next_state_SA.shape

    def states(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """State after each token [B, T]."""
        state = ids_BT[:, 0] - self.num_tokens
        states = [state]
        for t in range(1, ids_BT.shape[1]):
            state = self.next_state_SA[state, ids_BT[:, t].clamp(max=self.num_tokens - 1)]
            states.append(state)
        return torch.stack(states, dim=1)


class TabularPolicy(_StateTracker, PolicyModel):
    """Softmax policy: one logit per state and token.

    >>> policy = TabularPolicy(torch.tensor([[-1, 1], [-1, 0]]), torch.zeros(2, 2))
    >>> policy.logits(policy.hidden(torch.tensor([[2, 1, 1]]))).shape
    torch.Size([1, 3, 2])
    """

    def __init__(self, next_state_SA: torch.Tensor, logits_SA: torch.Tensor) -> None:
        super().__init__(next_state_SA)
        self.logits_SA = nn.Parameter(logits_SA.clone())
        self.vocab_size = self.num_tokens

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The state's row of logits [B, T, A]."""
        return self.logits_SA[self.states(ids_BT)]

    def logits(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """Identity: the hidden state is the row of logits."""
        return hidden_XD

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """The table."""
        return [("logits_SA", self.logits_SA.detach())]

    def decode_state(self, rows: int, capacity: int) -> TabularDecodeState:
        """One state a row."""
        return TabularDecodeState(self, rows)


class TabularCritic(_StateTracker, CriticModel):
    """One value per state."""

    def __init__(self, next_state_SA: torch.Tensor, values_S: torch.Tensor) -> None:
        super().__init__(next_state_SA)
        self.values_S = nn.Parameter(values_S.clone())

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The state's value [B, T, 1]."""
        return self.values_S[self.states(ids_BT)].unsqueeze(-1)

    def values(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """V [X]."""
        return hidden_XD.squeeze(-1)


class TabularDecodeState:
    """The current state of each row."""

    def __init__(self, policy: TabularPolicy, rows: int) -> None:
        self.policy = policy
        self.state = torch.zeros(rows, dtype=torch.int64, device=policy.logits_SA.device)

    def prefill(self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, first_row: int) -> torch.Tensor:
        """Walk the contexts."""
        states = self.policy.states(ids_BT)
        last = states[torch.arange(len(states), device=states.device), lengths_B - 1]
        self.state[first_row : first_row + len(last)] = last
        return self.policy.logits_SA[last]

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Move each row along the table."""
        batch = len(tokens_B)
        self.state[:batch] = self.policy.next_state_SA[self.state[:batch], tokens_B]
        return self.policy.logits_SA[self.state[:batch]]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows."""
        self.state[target] = self.state[source]
