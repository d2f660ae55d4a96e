"""Random networks with the habits of those that people bring, and independent judges of their maps.

``spec`` says what a network is made of, ``network`` builds it, ``judge`` computes what is right by
whole-graph autograd and NumPy, ``check`` compares. None of it knows how fastcam works.
"""
