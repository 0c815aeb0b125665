"""Safety Guidance and Safety Gate: who is flagged, what is shown instead, what passes, what is written down."""
