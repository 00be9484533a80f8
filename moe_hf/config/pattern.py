"""Which mixer each layer has and what it keeps between calls, read from the word or words of `mixer`."""

from moe_hf.base.errors import ConfigError, did_you_mean

# The mixers, and what a layer with one keeps between calls, in the words of transformers' `layer_types`. The classes
# behind those that are not transformers' own are made in `moe_hf/layers/caches/`: "recurrent" in `states.py`, "history"
# in `history_cache.py`.
CACHE_OF_MIXER = {
    "attention": "full_attention",
    "retention": "recurrent",
    "mamba": "recurrent",
    "hyena": "history",
    "rwkv": "recurrent",
    # A cache has an entry for every layer. This one counts tokens, and holds the last one where the FFN shifts tokens.
    "none": "recurrent",
}
MIXER_NAMES = tuple(CACHE_OF_MIXER)


def mixers_of_layers(mixer: str | list[str], num_layers: int) -> list[str]:
    """The mixer's name for each of `num_layers` layers.

    Args:
        mixer: a name; one name per layer; or a pattern of names separated by commas, each with an optional number of
            repetitions, that is repeated until all layers have one.
        num_layers: number of layers; a pattern must fit into it a whole number of times.

    Raises:
        ConfigError: an unknown name, a malformed pattern, or a number of layers that does not fit.

    >>> mixers_of_layers("mamba*3, attention", 8)
    ['mamba', 'mamba', 'mamba', 'attention', 'mamba', 'mamba', 'mamba', 'attention']
    """
    names = _expanded(mixer, num_layers) if isinstance(mixer, str) else list(mixer)
    for name in names:
        if name not in MIXER_NAMES:
            allowed = ", ".join(MIXER_NAMES)
            raise ConfigError(
                f"mixer={mixer!r} is not allowed; it must be made of {allowed}{did_you_mean(name, list(MIXER_NAMES))}"
            )
    if isinstance(mixer, str):
        if num_layers % len(names):
            raise ConfigError(
                f"mixer={mixer!r} is not allowed; it must be of layers that fit into "
                f"num_hidden_layers={num_layers} a whole number of times"
            )
        return names * (num_layers // len(names))
    if len(names) != num_layers:
        raise ConfigError(f"mixer={mixer!r} is not allowed; it must be {num_layers} entries, one per layer")
    return names


def _expanded(pattern: str, most: int) -> list[str]:
    names: list[str] = []
    for part in pattern.split(","):
        name, star, count = part.strip().partition("*")
        if star and not (count.strip().isdecimal() and int(count) >= 1):
            raise ConfigError(
                f"mixer={pattern!r} is not allowed; it must be names with a number behind each *, as 'mamba*3'"
            )
        # One more than there are layers does not fit either, and is soon made.
        names += [name.strip()] * (min(int(count), most + 1) if star else 1)
    return names
