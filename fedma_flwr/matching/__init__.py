"""Matrices in, assignments out: knows no Flower and no ``nn.Module``."""

from .bbp_map import BBPMAP
from .identity import IdentityMatching
from .result import Matcher, Matching, check_matcher
from .saved import SavedMatching

__all__ = ["BBPMAP", "IdentityMatching", "Matcher", "Matching", "SavedMatching", "check_matcher"]
