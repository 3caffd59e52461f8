"""`tppo plan`: memory, time and whether it fits, before anything is launched.

track.py    what a training step holds, by PyTorch's own tracker on the project's own code, without any memory
formula.py  the same by arithmetic, to check it by and to search with
engine.py   what inference engine and replicated data need
budget.py   which of it is resident when, and whether it fits
search.py   the nearest arrangement that fits
report.py   what is printed and written;  command.py  the command
"""
