"""Optimize Noise: one run of ReNO inside the host's sampling, and its checks, trace and live curves."""
