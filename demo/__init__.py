"""Shapes World: a tiny trained world, its makers and its independent judge."""
