"""A Hugging Face text classifier in a Flower app."""
