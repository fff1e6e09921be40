"""Speed of matching, bytes on the wire, scale: one command each."""
