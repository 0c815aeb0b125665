"""Search Best Images: one run, its settings and progress, and its inputs."""
