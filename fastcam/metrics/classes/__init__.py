"""The metrics over any number of batches and processes, as metrics of torchmetrics.

Each class has a function's arguments: those that are the same for all batches are given to the
class, the others to ``update``.
"""
