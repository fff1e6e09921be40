"""The numerical proof of a spec: invariance, sensitivity and growability, in float64.

Knows nothing of `deriving`: a spec that was written by hand is proven in the same way.
"""
