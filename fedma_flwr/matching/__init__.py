"""Matrices in, assignments out: knows no Flower and no ``nn.Module``."""

from .bbp_map import BBPMAP
from .checking import check_matching
from .identity_matching import IdentityMatching
from .matcher import Matcher, Matching, check_matcher
from .saved_matching import SavedMatching

__all__ = [
    "BBPMAP",
    "IdentityMatching",
    "Matcher",
    "Matching",
    "SavedMatching",
    "check_matcher",
    "check_matching",
]
