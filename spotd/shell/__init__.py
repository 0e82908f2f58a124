"""The shell does and never decides: one thing of the world per module."""
