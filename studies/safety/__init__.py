"""Study: harm kept out by Safety Guidance and Safety Gate, and its cost."""
