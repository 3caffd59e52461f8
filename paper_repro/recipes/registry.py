"""All recipes of this package by name."""

from __future__ import annotations

from paper_repro.recipes import qwen, small
from paper_repro.recipes.recipe import recipes_of

RECIPES = recipes_of(small, qwen)
