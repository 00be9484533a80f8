"""Tokenizers that need no download: bytes, byte-level BPE, and whole words with bytes for the rest."""

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moe_hf.base.errors import ConfigError
from moe_hf.text.chat_template import ASSISTANT, CHAT_TEMPLATE, SYSTEM, USER

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT)

KINDS = ("word", "bpe", "byte")


def byte_tokenizer(model_max_length: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes and `SPECIAL_TOKENS`: 261 ids, nothing to train."""
    return _finish(_byte_level(_byte_vocabulary()), model_max_length)


def train_tokenizer(
    texts: Iterable[str], kind: str = "word", vocab_size: int = 768, model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer fitted to `texts`, with chat template, bos/eos/pad ids and left padding.

    Every kind gives back any text exactly, whatever its script, since what is not in the vocabulary falls into bytes.

    Args:
        texts: what it is fitted to; passed over once.
        kind: `word` takes the most frequent words whole (one token each) and all others byte by byte, so that a rare
            word keeps its letters; `bpe` is byte-level BPE (Sennrich et al. 2016; Radford et al. 2019); `byte`
            ignores `texts`. `word` and `bpe` keep digits single.
        vocab_size: most ids that may be used, special tokens and bytes included; at least 261.
        model_max_length: the context length to note in the tokenizer, in tokens; no limit if absent.

    Raises:
        ConfigError: the kind is unknown or the vocabulary can't hold the special tokens and the bytes.
    """
    if kind not in KINDS:
        raise ConfigError(f"tokenizer kind must be one of {', '.join(KINDS)}, got {kind!r}")
    vocabulary = _byte_vocabulary()
    if vocab_size < len(vocabulary):
        raise ConfigError(
            f"vocab_size must be at least {len(vocabulary)} (256 bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}"
        )
    if kind == "byte":
        return byte_tokenizer(model_max_length)
    if kind == "bpe":
        return _finish(_train_bpe(texts, vocab_size), model_max_length)
    for word in _frequent_words(texts, vocab_size):
        if len(vocabulary) == vocab_size:
            break
        vocabulary.setdefault(word, len(vocabulary))
    return _finish(_byte_level(vocabulary), model_max_length)


def _byte_vocabulary() -> dict[str, int]:
    # Sorted, since the alphabet comes in any order, and ids must be the same everywhere.
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {symbol: index for index, symbol in enumerate(symbols)}


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _byte_level(vocabulary: dict[str, int]) -> Tokenizer:
    # With no merges and ignore_merges, a pre-token of the vocabulary is taken whole and any other falls into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        # All bytes, whatever the texts hold: so any other text can be spelled, too.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _frequent_words(texts: Iterable[str], vocab_size: int) -> Iterator[str]:
    counter = Tokenizer(models.WordLevel(unk_token=PAD))
    counter.pre_tokenizer = _pre_tokenizer()
    # Bytes and single letters are left out below, so ask for more words than can be needed.
    trainer = trainers.WordLevelTrainer(vocab_size=2 * vocab_size + 512, min_frequency=2, show_progress=False)
    counter.train_from_iterator(texts, trainer)
    ids = counter.get_vocab()
    for word in sorted(ids, key=ids.__getitem__):
        # A letter after a space stays two symbols, so that a letter is the same symbol wherever it stands.
        if len(word) > 1 and not (len(word) == 2 and word[0] == "Ġ" and word[1].isalpha()):
            yield word


def _finish(tokenizer: Tokenizer, model_max_length: int | None) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        # generate writes behind the right end of every row.
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **limit,
    )
