"""Telling people: a webhook and an SNS topic, each message once, at nobody's expense.

A message is first a file in the run's directory, so that one that finds no time before the
machine goes is sent after the next boot. What sends is a short-lived process of its own: it
costs the daemon no memory, and an endpoint that hangs hangs only it.
"""
