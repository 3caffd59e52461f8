"""AdamW with linear warm-up, gradient clipping and a refusal of non-finite gradients."""

from __future__ import annotations

import torch

from tppo.fit.options import Optimizer
from tppo.maths.finite import check_finite
from tppo.ranks.shard import full


class ModelOptimizer:
    """Optimiser of one model. Weight decay goes to matrices only, not to biases and norms."""

    def __init__(self, module: torch.nn.Module, options: Optimizer) -> None:
        self.options = options
        self.named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for _, p in self.named if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for _, p in self.named if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (float(options.beta1), float(options.beta2))  # AdamW refuses a 0 beside a 0.999
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=options.lr, betas=betas)
        warmup = options.warmup_updates
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda n: min(1.0, (n + 1) / (warmup + 1)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def resume_schedule(self, updates: int) -> None:
        """Stand where the schedule stands after ``updates`` updates; the peak rate is the configuration's."""
        self.schedule.last_epoch, self.schedule._step_count = updates, updates + 1
        rates = [
            base * factor(updates)
            for base, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule._last_lr = rates

    def step(self, *, name: str) -> float:
        """One update; returns the gradient norm before clipping. Raises NonFiniteError instead of updating."""
        parameters = [p for _, p in self.named]
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        # Before clipping, which would spread a NaN to every weight.
        if not bool(torch.isfinite(norm)):
            for weight, p in self.named:
                if p.grad is not None:
                    check_finite(f"gradient of {name} weight {weight}", full(p.grad))
            check_finite(f"gradient norm of {name}", norm)
        if self.options.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.options.grad_clip, norm)
        self.adamw.step()
        self.schedule.step()
        return float(norm)
