"""Safety Guidance and Safety Gate: flagging, fallback prompt, covering and log."""
