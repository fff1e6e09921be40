"""A task of seconds with LeNet's stages: local, two retrain stages, head."""
