"""A Lightning module in a Flower app."""
