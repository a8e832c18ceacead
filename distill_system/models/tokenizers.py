"""Tokenizers: from a folder, a hub name or a GGUF file, and one over bytes that needs no file at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.errors import Refusal, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "bytes"
PAD, END, UNKNOWN, BEGIN = "<pad>", "</s>", "<unk>", "<s>"
FIRST_BYTE = 3  # ByT5's numbering: byte b is token b + 3 (https://arxiv.org/abs/2105.13626)


def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """260 tokens: padding, end, unknown, the 256 bytes of UTF-8 in ByT5's numbering, begin.

    It is a tokenizer of the `tokenizers` library and not transformers' `ByT5Tokenizer`, though the ids are the same: a folder with a ByT5Tokenizer and the
    config of some architectures (Qwen2) loads another tokenizer without a word. It also puts a begin token in front, which encoders classify by.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = byte_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (PAD, END, UNKNOWN, BEGIN)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} $B:1 {END}:1",
        special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])],
    )
    names = {
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        "cls_token": BEGIN,
        "sep_token": END,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def byte_vocabulary() -> dict[str, int]:
    """The tokens of `byte_tokenizer` and their ids, without the library that makes one."""
    symbols = {symbol: FIRST_BYTE + byte for byte, symbol in enumerate(_byte_symbols())}
    return {PAD: 0, END: 1, UNKNOWN: 2} | symbols | {BEGIN: FIRST_BYTE + len(symbols)}


def _byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte, in the bytes' order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def load_tokenizer(
    name: str | Path, key: str, *, revision: str | None = None, gguf_file: str | None = None, local_only: bool = False
) -> "PreTrainedTokenizerBase":
    """A tokenizer that can pad, by folder, hub name, GGUF file inside a folder, or the word `bytes`.

    Raises:
        Refusal: it can't be loaded, or has no token that could pad; the message names `key`.
    """
    if str(name) == BYTES:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(name), revision=revision or "main", trust_remote_code=False, local_files_only=local_only, **options
        )
    except Refusal:
        raise
    except Exception as error:  # the library raises whatever the file's parser raises
        raise refuse(
            key, f"is {str(name)!r}, from which no tokenizer can be loaded ({first_sentence(error)})"
        ) from error
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise refuse(
                key, f"is {str(name)!r}, whose tokenizer has neither a padding token nor an end token to pad with"
            )
        tokenizer.pad_token = stand_in
    return tokenizer


def first_sentence(error: BaseException) -> str:
    """The first line of an error, short enough for a message."""
    text = str(error).strip().split("\n")[0].rstrip(".:") or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
