"""Shapes World alone: captions, scenes, judge, corpus, weights and the recipes of its networks. No experiment, no host object."""
