"""The operator's side of EC2: what to ask for, in which order, and what its answers mean.

`plan`, `words`, `ending` and `pricing` only decide; `api` does the calls. See docs/launching.md.
"""
