"""LoRA adapters in a Flower app."""
