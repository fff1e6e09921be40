"""Experiments on top of the package, each one command: `python -m simulations.demo`."""
