"""Study: the gain of Search over fewer seeds at equal cost."""
