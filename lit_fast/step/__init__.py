"""One training step: passes, loss, update; its capture, and several processes."""
