"""A toy language of checkable problems with long-tailed answers.

Everything a language-model RL run needs and nothing it has to download: a tokenizer, an endless stream of problems
split into training and held-out, a grader of final answers, and imperfect worked solutions to start a model from.

>>> from sim.language import Language, demonstrate, grade
>>> import numpy as np
>>> problem = Language().problem("train", 0)
>>> grade(problem.answer, demonstrate(problem, np.random.default_rng(0)))
1.0
"""

from sim.language.families import FAMILIES, demonstrate
from sim.language.grader import grade
from sim.language.problems import MAX_STEPS, MIN_STEPS, Difficulty, Problem
from sim.language.stream import SPLITS, Language, Split, split_of
from sim.language.tokenizer import ANSWER_MARK, EOS_ID, PAD_ID, VOCAB_SIZE, decode, encode

__all__ = [
    "ANSWER_MARK",
    "EOS_ID",
    "FAMILIES",
    "MAX_STEPS",
    "MIN_STEPS",
    "PAD_ID",
    "SPLITS",
    "VOCAB_SIZE",
    "Difficulty",
    "Language",
    "Problem",
    "Split",
    "decode",
    "demonstrate",
    "encode",
    "grade",
    "split_of",
]
