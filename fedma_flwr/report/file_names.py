"""The files of a run's output folder."""

EXCHANGES = "exchanges.jsonl"  # one JSON object an exchange
RESULT = "result.json"  # the rounds so far
SETTINGS = "settings.json"  # what was set, and the versions that it ran on
MODEL = "model.safetensors"  # the final model
REPORT = "report.html"  # all of it, to be looked at
