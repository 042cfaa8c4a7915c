"""A resumable training run: its directory, checkpoints, callbacks and loop."""
