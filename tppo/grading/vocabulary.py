"""The words that the reader of answers knows: lists, and nothing else."""

from __future__ import annotations

_HARMLESS = """
the a an answer answers final is are so thus hence therefore then we get have has find found obtain equals equal to
it its that this there of must should exactly simply just namely required correct value result solution solutions
sum total number area volume length probability ratio product perimeter radius distance which gives be will since
and our my means i.e ie ans in all as required
"""
_CHANGING = """
not no never neither nor or either cannot can't isn't aren't wasn't wrong incorrect unless if half twice double
triple minus negative less more most least fewer about approximately roughly nearly almost around between maybe
perhaps guess probably possibly likely unlikely might could may but except than over under million thousand hundred
billion trillion dozen squared cubed factorial plus option options candidates
"""
_SHORT = """
m:metre s:second sec:second h:hour hr:hour min:minute g:gram l:litre cm:centimetre mm:millimetre km:kilometre
kg:kilogram mg:milligram ml:millilitre ft:foot feet:foot in:inch mi:mile yd:yard lb:pound oz:ounce gal:gallon
usd:dollar mph:mile kmph:kilometre kph:kilometre deg:degree inches:inch people:person men:man women:woman
children:child pence:penny pennies:penny
"""
_UNITS = """
degree radian centimetre centimeter millimetre millimeter kilometre kilometer metre meter inch foot yard mile acre
hectare gram kilogram milligram pound ounce ton tonne litre liter millilitre milliliter gallon quart pint cup second
minute hour day week month year dollar cent euro rupee penny unit person man woman child boy girl student kid apple
orange banana egg toy coin card ball marble book page way digit point side edge vertex vertices face solution
integer number term triangle square rectangle circle line segment diagonal step time piece slice block tile
seat ticket car bus tree flower animal cat dog bird chicken sheep cow duck fish bottle box boxes glass glasses
pencil pen cookie pizza candy candies cake sandwich sandwiches game question problem match matches win vote meal
house room floor worker friend player team mark newton joule watt volt ohm hertz kelvin celsius fahrenheit
"""
_FUNCTIONS = "sqrt pi sin cos tan infinity infty log ln exp sec csc cot arcsin arccos arctan max min mod and or"
_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell
"""

HARMLESS = frozenset(_HARMLESS.split())
"""Words that may stand before a value and say nothing about it."""
CHANGING = frozenset(_CHANGING.split())
"""Words that take back, scale or add to what is said, or make a guess of it: beside them nothing is harmless."""
SHORT = dict(pair.split(":") for pair in _SHORT.split())
"""Short and irregular forms of units, and their names."""
UNITS = frozenset(_UNITS.split())
"""Units and things that are counted, in the singular."""
ALONE = frozenset(("m", "s", "h", "g", "l", "in", "min", "sec", "time", "line"))
"""Units only where they are set as text: elsewhere they are variables or words of another meaning."""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Words that are mathematics."""
GREEK = frozenset(_GREEK.split())
"""Commands that are variables."""
