"""Ready-made parts that algorithms share.

select.py      which responses train in a step
tokens.py      which of their tokens train the policy
terms.py       what the policy descends
advantages.py  how tokens get their advantage
"""
