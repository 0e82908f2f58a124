"""The checkpoint directory: what stands in it, what is whole, what spotd keeps of it.

Everything in it belongs to the trainer's user and may be swapped at any time: every
open below the directory goes by descriptor and follows no link.
"""
