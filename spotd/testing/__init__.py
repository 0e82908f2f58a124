"""Simulators and fault proxies that the demo, the drill and the tests share."""
