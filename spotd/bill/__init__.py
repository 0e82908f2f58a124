"""What a run has cost: the records of its boots, prices for them, and the sums.

`reckoning` and `parts` only decide; `records` and `prices` look. Never a guess shown as a
fact: what is not known exactly is a range with both ends, and what is not known is unknown.
"""
