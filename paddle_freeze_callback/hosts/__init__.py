"""Under which training loop: what the events of each loop mean.

A host turns the arguments of a loop's events into the network, the optimizer, the length of the
run and the number of optimizer steps done. Nothing outside this package knows which loop runs.
"""
