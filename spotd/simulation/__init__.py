"""A deterministic world around `spotd.core`: the very core that runs on the instance.

Clock, trainer, disk, store and EC2 are models; the decisions are not. Golden scenarios,
random weather and `spotd simulate` all run here.
"""
