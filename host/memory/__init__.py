"""Memory and gradients: the one place that leaves inference mode, casts weights, and handles running out of memory."""
