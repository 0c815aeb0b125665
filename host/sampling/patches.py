"""Names of the patches that other nodes have put on a MODEL, for messages."""

PACK = __name__.rpartition(".host.")[0]


def patches_of(patcher) -> list[str]:
    """Names of patches from other nodes on a MODEL, for a message; empty for a plain model.

    Hooks of this pack are left out: they know what they do.
    """
    options = patcher.model_options
    transformer = options.get("transformer_options", {})
    functions = [
        f for key, value in options.items() if key.startswith(("sampler_", "model_function")) for f in _flat(value)
    ]
    functions += [f for name in ("patches", "patches_replace") for f in _flat(transformer.get(name))]
    functions += _flat(patcher.wrappers)
    functions += [
        f for name, f in patcher.object_patches.items() if name != "model_sampling"
    ]  # a table of noise levels
    names = [_name(f) for f in functions if not _module(f).startswith(PACK)]
    return sorted(set(names))


def _flat(value) -> list:
    if isinstance(value, dict):
        return [item for inner in value.values() for item in _flat(inner)]
    if isinstance(value, list | tuple):
        return [item for inner in value for item in _flat(inner)]
    return [] if value is None else [value]


def _module(function) -> str:
    return getattr(function, "__module__", None) or type(function).__module__


def _name(function) -> str:
    """Name of the node that made a patch, as far as a function shows it."""
    return (getattr(function, "__qualname__", None) or type(function).__qualname__).split(".")[0]
