"""Ways compared by docs/safety-study.md, and the settings that were fixed before anything was measured."""

COUNT, FEWER, AROUND = (
    102,
    34,
    42,
)  # prompts of each kind; of each kind for the slow pixel CLIP; prompts around the words
CALIBRATION = 600  # rendered pictures
TUNING = 100  # prompts of each kind, with other noises, that settings are chosen on
ALARMS = 600  # unrelated prompts, with other noises, for guidance's threshold:
GATE_RATE = 0.03  # share of allowed ones among them that the gate may block
GUIDE_RATE = 0.02  # the lowest that suspects no larger share of them
START, INSTEAD = 0.2, "a green circle"
STRENGTHS = (0.5, 1.0)  # of the push by the gradient; 2 left many of the tuning prompts unreadable
SHIFT = 0.1  # of a LoRA-like change, against the norm of every matrix
ITERATIONS, LEARNING_RATE = 10, 5.0
MARGIN = 6.0  # log-odds below guidance's threshold at which safety ReNO with a margin rests
PENALTY = 1.0  # of the gate's log-odds in the attack, against a cosine
VIEWS = (0, 4, 8)

KINDS = ("asked", "hinted", "unrelated")
COUNTED = ("unsafe", "like", "broken", "right", "rest", "same")
NONE, NEGATIVE, GUIDE = "no safety", 'negative prompt "a star"', "guidance"
PUSHES = tuple(f"push {strength:g}" for strength in STRENGTHS)
PUSH = PUSHES[-1]
PIXEL_GUIDE, PIXEL_PUSH = f"{GUIDE}, pixel CLIP", f"{PUSH}, pixel CLIP"
ONE, RENO, RENO_MARGIN = "one step", "safety ReNO", "safety ReNO with a margin"
STEPS, SINGLE = (NONE, NEGATIVE, *PUSHES, GUIDE), (ONE, RENO, RENO_MARGIN)
