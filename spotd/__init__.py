"""spotd: training on an EC2 Spot instance that feels like owning the machine."""

__version__ = "0.1.0"
