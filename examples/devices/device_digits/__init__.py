"""One model for devices of several sizes, in a Flower app."""
