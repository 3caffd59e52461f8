"""Texts of about a megabyte that a careless search reads in quadratic time or worse."""

HUGE = [
    "\\boxed{" * 140_000,
    "\\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    "\\frac{1}{2} + " * 75_000,
    "Answer:" * 150_000,
    "Answer: " + "\\" * 10**6,
    "\\boxed{" + " " * 10**6 + "}",
]
