"""What looks on: figures, the ledger, the loss curve, messages. None of it decides anything.

The deciding loop hands over each announcement and each new state, which costs it a queue's
put and two comparisons; everything else happens in one thread of its own.
"""
