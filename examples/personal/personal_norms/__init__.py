"""Personal batch norms in a Flower app."""
