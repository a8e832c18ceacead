"""Which layer of the student hears which layer of the teacher. Layers are counted from 0, the first transformer layer (its output, not the embeddings)."""

from distill_system.errors import refuse

Pairs = list[tuple[int, int]]  # (student's layer, teacher's layer)


def relative_depth(student_layers: int, teacher_layers: int) -> Pairs:
    """Each layer of the student with the teacher's at the same relative depth: layer i of S with (i + 1) * T / S - 1, rounded (half up).

    The last hears the last. A student that is deeper than its teacher hears some layers twice.

    >>> relative_depth(2, 6), relative_depth(4, 6)
    ([(0, 2), (1, 5)], [(0, 1), (1, 2), (2, 4), (3, 5)])
    """
    rounded = [
        (2 * (i + 1) * teacher_layers + student_layers) // (2 * student_layers) - 1 for i in range(student_layers)
    ]
    return [(i, max(0, layer)) for i, layer in enumerate(rounded)]


def choose_pairs(
    layers: str | list[list[int]],
    student_layers: int,
    teacher_layers: int,
    key: str,
    survivors: tuple[tuple[int, ...], int] | None = None,
) -> Pairs:
    """Pairs of layers as a setting describes them.

    Args:
        layers: `auto` (relative depth), `last` (the last of both), or a list of [student's layer, teacher's layer].
        student_layers: how many the student has.
        teacher_layers: how many the teacher has.
        key: of the setting, for refusals.
        survivors: of a student that has lost layers, the numbers of those that are left, and how many there were: each goes on hearing the layer that it
            heard before.

    Raises:
        Refusal: a pair that isn't one, is there twice, or names a layer that doesn't exist; or no layer that hears one is left.
    """
    if survivors is not None and layers != "last":
        numbers, original = survivors
        now = {number: i for i, number in enumerate(numbers)}
        pairs = [(now[i], j) for i, j in choose_pairs(layers, original, teacher_layers, key) if i in now]
        if not pairs:
            raise refuse(key, f"names no layer that is left: of {original} layers {list(numbers)} are")
        return pairs
    if layers == "auto":
        return relative_depth(student_layers, teacher_layers)
    if isinstance(layers, str):
        assert layers == "last", layers
        return [(student_layers - 1, teacher_layers - 1)]
    pairs = []
    for place, pair in enumerate(layers):
        if len(pair) != 2:
            raise refuse(
                f"{key}[{place}]", f"is {pair!r}, must be a pair [student's layer, teacher's layer], e.g. [0,1]"
            )
        for who, layer, there in (("student", pair[0], student_layers), ("teacher", pair[1], teacher_layers)):
            if not 0 <= layer < there:
                near = [min(max(0, pair[0]), student_layers - 1), min(max(0, pair[1]), teacher_layers - 1)]
                raise refuse(
                    f"{key}[{place}]",
                    f"is {list(pair)}, but the {who} has no layer {layer}, only 0 to {there - 1}; the nearest pair is {near}",
                )
        pairs.append((pair[0], pair[1]))
    if not pairs:
        raise refuse(key, "is an empty list, must hold pairs [student's layer, teacher's layer], or be auto")
    doubled = next((pair for pair in pairs if pairs.count(pair) > 1), None)
    if doubled:
        raise refuse(key, f"holds the pair {list(doubled)} twice; raise the loss's weight instead")
    return pairs
