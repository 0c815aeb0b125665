"""Measure what the shipped models of Shapes World can do."""
