"""Matrices in, assignments out: knows no Flower and no ``nn.Module``."""
