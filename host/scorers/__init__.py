"""Models that score latents, in the host's care: loading, text encoding, memory, chunks, reports."""
