"""The core decides and touches nothing: no clock, file, socket or environment.

Time comes in as a value, everything the world does comes in as an event
(`spotd.core.events`), everything spotd does goes out as an action
(`spotd.core.actions`), in the order in which it must happen.
"""
