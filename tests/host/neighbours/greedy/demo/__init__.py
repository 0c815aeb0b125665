"""A bare name that our pack uses for a room of its own."""
