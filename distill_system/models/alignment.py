"""Whether two models speak of the same thing: labels are aligned by name, tokenizers proven equal, padded vocabulary rows cut.

Shapes: B samples, T tokens, V rows of the output layer (the vocabulary, often padded to a round number).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distill_system.errors import Problem, nearest
from distill_system.models.images import check_processors

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_LABEL = re.compile(r"label_\d+", re.IGNORECASE)
PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading, doubled  and trailing spaces \t tabs\nand\r\nline ends ",
    "It's 3.14159, or 22/7 -- isn't it?! (1,234,567.89 EUR; 50%)",
    "UPPER lower MiXeD sNAKE_case camelCase https://example.org/a?b=c&d=e#f",
    "naïve façade Ångström Zürich über ﬁne ½ № Æsop İstanbul",
    "Привет, мир! Γειά σου Κόσμε 你好,世界 こんにちは世界 안녕하세요 مرحبا بالعالم שלום नमस्ते",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 vs \u00e9, zero\u200bwidth, nb\u00a0space",
    "<s> </s> [CLS] [SEP] <|endoftext|> <pad>",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # comment",
    "antidisestablishmentarianism supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaft",
    "",
)


@dataclass(frozen=True)
class LabelAlignment:
    """`logits[..., order]` speaks of the student's labels in the student's order; `order` is empty if there are problems."""

    order: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the teacher knows all of the student's labels; -1 in `order` stands for one that it doesn't know."""
        return -1 not in self.order

    @property
    def is_identity(self) -> bool:
        return self.order == list(range(len(self.order)))


def align_labels(
    teacher_id2label: Mapping[Any, str],
    student_label_names: Sequence[str],
    key: str = "teachers",
    *,
    partial: bool = False,
) -> LabelAlignment:
    """Finds, for each of the student's labels, the teacher's class of the same name (upper and lower case don't matter).

    A teacher that has only default names (LABEL_0, LABEL_1, ...) is aligned by position, with a warning.

    Args:
        teacher_id2label: `config.id2label`, its keys numbers or texts.
        student_label_names: in the order of the student's classes.
        key: the config key that problems name.
        partial: take a teacher that knows only part of the labels, two at least; not one that knows others.
    """
    names = [str(name) for _, name in sorted((int(i), name) for i, name in teacher_id2label.items())]
    student = [str(name) for name in student_label_names]
    folded_student = {name.casefold().strip() for name in student}
    subset = 2 <= len(names) < len(student) and all(name.casefold().strip() in folded_student for name in names)
    if len(names) != len(student) and not (partial and subset):
        text = f"has {len(names)} labels ({_listed(names)}), the data has {len(student)} ({_listed(student)}); they must be the same"
        return LabelAlignment(problems=[Problem(key, text)])
    by_name = {name.casefold().strip(): i for i, name in enumerate(names)}
    wanted = [name.casefold().strip() for name in student]
    for which, given, folded in (("the teacher", names, by_name), ("the data", student, set(wanted))):
        if len(folded) != len(given):
            return LabelAlignment(
                problems=[Problem(key, f"can't be aligned: {which} has two labels of the same name ({_listed(given)})")]
            )
    missing = [name for name, short in zip(student, wanted, strict=True) if short not in by_name]
    if not missing or (partial and subset):
        known = ", ".join(names)
        note = [f"{key}: it knows {len(names)} of {len(student)} labels ({known}) and teaches those"] if missing else []
        return LabelAlignment([by_name.get(short, -1) for short in wanted], warnings=note)
    if all(DEFAULT_LABEL.fullmatch(name) for name in names):
        text = f"{key}: the teacher's labels have no names ({_listed(names)}); they are taken in the data's order ({_listed(student)})"
        return LabelAlignment(list(range(len(names))), warnings=[text])
    return LabelAlignment(
        problems=[Problem(key, f"has no label {name!r}{nearest(name, names)}, which the data has") for name in missing]
    )


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_tokenizers(one: Any, other: Any, key: str = "teachers", texts: Iterable[str] = PROBE_TEXTS) -> list[Problem]:
    """Proves that two tokenizers are equal on the range they share, or names the first difference; of image processors, that they give the same pixels.

    Equal means: the same token at each id below the smaller size, and the same ids for each of the probe texts.

    Args:
        one: the teacher's.
        other: the student's.
        key: the config key that problems name.
        texts: encoded by both, besides the vocabulary; some of the data's own texts may be added.
    """
    words = [hasattr(reader, "get_vocab") for reader in (one, other)]
    if not all(words):
        if any(words):
            kinds = ["texts" if word else "pictures" for word in words]
            return [Problem(key, f"reads {kinds[0]}, the student reads {kinds[1]}; take models of one kind")]
        return check_processors(one, other, key)
    shared = min(len(one), len(other))
    first, second = (
        {i: token for token, i in tokenizer.get_vocab().items() if i < shared} for tokenizer in (one, other)
    )
    for i in range(shared):
        if first.get(i) != second.get(i):
            text = f"has another vocabulary than the student: token {i} is {first.get(i)!r} there and {second.get(i)!r} here"
            return [Problem(key, f"{text}; logits can't be compared, take the same tokenizer for both")]
    for text in texts:
        ids, others = (list(tokenizer(text)["input_ids"]) for tokenizer in (one, other))
        if ids != others:
            place = next(
                (i for i, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]),
                min(len(ids), len(others)),
            )
            there, here = ids[place : place + 3], others[place : place + 3]
            return [
                Problem(
                    key,
                    f"splits {text[:40]!r} in another way than the student: from token {place} on {there} there and {here} here",
                )
            ]
    return []


def cut_vocabulary(logits_BTV: "Tensor", size: int, width: int | None = None) -> "Tensor":
    """Logits over the `size` words that really exist: rows behind them get -inf, never zero, so that a softmax gives them no mass.

    Args:
        logits_BTV: any leading shape; the last dimension may be longer than `size` (padded) or shorter.
        size: the number of words that teacher and student share.
        width: length of the last dimension of the result; None: `size`, so that the padded rows are gone altogether.
    """
    width = size if width is None else width
    assert 0 < size <= width, (size, width)
    logits_BTV = logits_BTV[..., :size]
    missing = width - logits_BTV.shape[-1]
    if missing == 0:
        return logits_BTV
    from torch.nn import functional

    return functional.pad(logits_BTV, (0, missing), value=-math.inf)
