"""Ready-made parts that algorithms share.

select.py      which responses train in a step
tokens.py      which of their tokens train the policy
terms.py       what the policy descends
weighted.py    the same by weights instead of a clip, and corrections of any term
advantages.py  how tokens get their advantage
rewards.py     how outcomes are shaped before
window.py      the check that every algorithm with a window makes
"""
