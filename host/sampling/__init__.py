"""Additions to the host's samplers: wrappers of predictions, conditioning, noise, drafts, reserved memory."""
