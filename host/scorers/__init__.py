"""Models that score latents: loading, text encoding, memory, chunks, reports."""
