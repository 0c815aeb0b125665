"""What builds, packages, tests and documents this repository. Nothing that users run."""
