"""Bias correction for a class that a student never saw (Hinton et al. 2015, arXiv:1503.02531, section 3): raise the class's logit by one number.

The number b makes the class as frequent among the predictions on the validation rows as it is among their labels: with margins m_n = max_{k != c} z_nk - z_nc, row n
is given class c when b > m_n, so b is the margins' quantile at the class's frequency. Differs from the paper in that the offset isn't chosen by the test error.

Shapes: N rows, C classes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 256  # in a forward


def frequency_bias(logits_NC: "Tensor", label: int, frequency: float) -> float:
    """What must be added to the logit of `label` so that it is predicted for a share `frequency` of the rows."""
    import torch

    others_NC = logits_NC.double().clone()
    others_NC[:, label] = -torch.inf
    margins_N = (others_NC.max(dim=-1).values - logits_NC[:, label].double()).sort().values
    rows = len(margins_N)
    wanted = min(max(round(frequency * rows), 0), rows)
    if wanted == 0:
        return float(margins_N[0]) - 1.0
    if wanted == rows:
        return float(margins_N[-1]) + 1.0
    return float(margins_N[wanted - 1] + margins_N[wanted]) / 2


def corrected_metrics(
    validation_NC: "Tensor", validation_N: "Tensor", test_NC: "Tensor", test_N: "Tensor", label: int
) -> dict[str, float]:
    """Accuracy and the class's recall on the test rows, after and before the correction that the validation rows gave."""
    bias = frequency_bias(validation_NC, label, float((validation_N == label).double().mean()))
    raised_NC = test_NC.clone()
    raised_NC[:, label] += bias
    found = {"bias": bias}
    for name, logits_NC in (("accuracy", raised_NC), ("accuracy_before", test_NC)):
        found[name] = float((logits_NC.argmax(dim=-1) == test_N).double().mean())
    own_N = test_N == label
    for name, logits_NC in (("recall", raised_NC), ("recall_before", test_NC)):
        found[name] = float((logits_NC[own_N].argmax(dim=-1) == label).double().mean())
    return found


def corrected_arm(folder: Path, data: dict[str, Any], label: str) -> dict[str, Any]:
    """The metrics of a saved model with the bias of one class corrected, as an arm of an outcome.

    Args:
        folder: `<phase>/model` of a finished run.
        data: the resolved `data` of the run.
        label: name of the class.
    """
    from benchmarks.evidence.outcomes import RECALL
    from distill_system.config.instantiate import instantiate

    source = instantiate(data)
    at = source.label_names().index(label)
    validation, test = (logits_and_labels(folder, source, split) for split in ("validation", "test"))
    found = corrected_metrics(*validation, *test, at)
    recall = found.pop("recall")
    metrics = {key: round(value, 6) for key, value in (found | {f"{RECALL}{label}": recall}).items()}
    return {"metrics": metrics, "seconds": 0.0, "steps": 0}


def logits_and_labels(folder: Path, source: Any, split: str) -> tuple["Tensor", "Tensor"]:
    """What a saved model says of a split, its classes in the order of the data's."""
    import torch

    from distill_system.data.collate import collate
    from distill_system.data.tokens import tokenise
    from distill_system.evaluation.load import load_model
    from distill_system.evaluation.readers import reader_for, saved_reader
    from distill_system.models.alignment import align_labels
    from distill_system.training.objective import logits_of

    model = load_model(folder, source.task)
    reader, _ = reader_for(source, saved_reader(folder, "path"), model.config, "path")
    store, pad_id = tokenise(source, reader)[split], getattr(reader, "pad_token_id", None) or 0
    order = torch.tensor(align_labels(model.config.id2label, source.label_names(), "path").order)
    logits, labels = [], []
    with torch.no_grad():
        for start in range(0, len(store), ROWS):
            batch = collate(store, list(range(start, min(start + ROWS, len(store)))), pad_id)
            logits.append(logits_of(model, batch, source.task)[..., order].float())
            labels.append(batch["labels"])
    return torch.cat(logits), torch.cat(labels)
