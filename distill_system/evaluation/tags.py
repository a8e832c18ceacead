"""Quality of tags, one a word: exact spans where the tags are in BIO form (B-PER I-PER O), else tag by tag.

Shapes: P words over all samples, C tags.
"""

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from distill_system.evaluation.metrics import classification_metrics

Span = tuple[str, int, int]  # kind, first word, the word after the last
BIO = re.compile(r"O|[BI]-.+")


def is_bio(names: Iterable[str]) -> bool:
    """Whether every tag is O, B-<kind> or I-<kind>, with at least one span among them."""
    names = list(names)
    return all(BIO.fullmatch(name) for name in names) and any(name != "O" for name in names)


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence: B- begins one, I- goes on; an I- that follows no span of its kind begins one, as conlleval has it.

    >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5), ('PER', 5, 6)]
    """
    found: list[Span] = []
    for at, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        goes_on = mark == "I" and found and found[-1][0] == kind and found[-1][2] == at
        if goes_on:
            found[-1] = (kind, found[-1][1], at + 1)
        elif mark != "O":
            found.append((kind, at, at + 1))
    return found


def span_f1(true: Iterable[Sequence[str]], said: Iterable[Sequence[str]]) -> float:
    """Micro F1 over all sentences of spans with the same kind and both ends right; NaN where there is none on either side.

    The CoNLL-2003 measure, https://aclanthology.org/W03-0419.

    >>> span_f1([["B-A", "I-A", "B-B"]], [["B-A", "O", "B-B"]])
    0.5
    """
    hits = total = 0
    for true_tags, said_tags in zip(true, said, strict=True):
        a, b = set(spans(true_tags)), set(spans(said_tags))
        hits += len(a & b)
        total += len(a) + len(b)
    return 2 * hits / total if total else math.nan


def sentences(classes_P: Tensor, samples_P: Tensor, names: Sequence[str]) -> list[list[str]]:
    """Tags by name, sentence by sentence; words of a sentence stand together."""
    found: list[list[str]] = []
    before = None
    for number, sample in zip(classes_P.tolist(), samples_P.tolist(), strict=True):
        if sample != before:
            found.append([])
            before = sample
        found[-1].append(names[number])
    return found


def tag_metrics(logits_PC: Tensor, labels_P: Tensor, samples_P: Tensor, names: Sequence[str]) -> dict[str, float]:
    """F1 (of exact spans where the tags are BIO, else the mean over tags), share of words with the right tag, calibration error and NLL a word.

    Args:
        logits_PC: of the labelled words, those of a sentence one after another.
        labels_P: all known.
        samples_P: the sentence of each word.
        names: of the tags, in order.
    """
    metrics = classification_metrics(logits_PC, labels_P)
    words, macro = metrics.pop("samples"), metrics.pop("macro_f1")
    f1 = macro
    if words and is_bio(names):
        true, said = (sentences(tags_P, samples_P, names) for tags_P in (labels_P, logits_PC.argmax(dim=-1)))
        f1 = span_f1(true, said)
    return {"f1": f1, **metrics, "tokens": words}


def spans_in_words(words: Sequence[str], tags: Sequence[str]) -> str:
    """Tags of a sentence for a reader: its spans, or each word with its tag where the tags aren't BIO.

    >>> spans_in_words(["Ada", "Lovelace", "wrote"], ["B-PER", "I-PER", "O"]), spans_in_words(["so"], ["adv"])
    ('Ada Lovelace (PER)', 'so/adv')
    """
    if is_bio(set(tags) | {"B-x"}):
        return ", ".join(f"{' '.join(words[a:b])} ({kind})" for kind, a, b in spans(tags)) or "no spans"
    return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=False))


def first_words(samples_P: Tensor, index: int) -> Tensor:
    """Where the words of one sample stand."""
    return torch.nonzero(samples_P == index).flatten()
