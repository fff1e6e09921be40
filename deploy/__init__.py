"""Flower on real processes: certificates, a SuperLink, SuperNodes, a demo that runs all of them."""
