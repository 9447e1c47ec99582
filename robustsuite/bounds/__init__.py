"""The bound-propagation engine: certifiers and certified training share it.

`graph` traces the user's module into operators, `operators` knows what each of them does to a box, `rounding` keeps a
box true for the float32 execution, `ibp` propagates boxes.
"""
