"""Experiments that judge the methods, on Shapes World: each writes its results here and its page in docs/. Nothing that ships."""
