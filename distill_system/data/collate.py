"""Rows of a store as a batch of tensors: texts padded to the longest row among them, or pictures.

Shapes: B rows, T tokens of the longest row, C labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill_system.data.pixels import PixelStore
from distill_system.data.tokens import TokenStore
from distill_system.signals import IGNORE

Batch = dict[str, Tensor]


def collate(
    store: TokenStore, indices: Sequence[int], pad_id: int | None, view: tuple[int, int] | None = None
) -> Batch:
    """The batch of the rows `indices`; -1 stands for filler: a copy of some row that is marked invalid and has no label.

    Without a `pad_id` short rows are filled with token 0, which the attention mask hides all the same. `view` (seed, epoch) asks for the augmented
    view of pictures that are trained on.

    Returns:
        `input_ids`, `attention_mask` [B, T], `labels` ([B] in classification, [B, C] in multi-label and regression, [B, T] in token classification and
        causal_lm, not shifted), `valid` [B], `index` [B], and `token_type_ids` [B, T] where rows have two texts. Of pictures `pixel_values`
        [B, channels, rows, columns] in place of tokens and mask.
    """
    index_B = np.asarray(indices, dtype=np.int64)
    valid_B = index_B >= 0
    rows_B = np.where(valid_B, index_B, max(0, int(index_B.max())))
    if isinstance(store, PixelStore):
        arrays = {
            "pixel_values": store.batch(rows_B, view),
            "labels": np.where(valid_B, store.labels[rows_B], IGNORE),
            "valid": valid_B,
            "index": index_B,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    start_B = store.offsets[rows_B]
    length_B = store.offsets[rows_B + 1] - start_B
    column_T = np.arange(int(length_B.max()))
    mask_BT = column_T < length_B[:, None]
    where_BT = np.where(mask_BT, start_B[:, None] + column_T, start_B[:, None])
    tokens_BT = np.where(mask_BT, store.tokens[where_BT], pad_id or 0).astype(np.int64)
    if store.task == "causal_lm":
        labels = np.where(mask_BT & valid_B[:, None], tokens_BT, IGNORE)
    elif store.task == "token_classification":
        labels = np.where(mask_BT & valid_B[:, None], store.labels[where_BT], IGNORE)
    elif store.labels.ndim == 2:
        labels = np.where(valid_B[:, None], store.labels[rows_B], np.float32(np.nan))
    else:
        labels = np.where(valid_B, store.labels[rows_B], IGNORE)
    arrays = {
        "input_ids": tokens_BT,
        "attention_mask": mask_BT.astype(np.int64),
        "labels": labels,
        "valid": valid_B,
        "index": index_B,
    }
    if store.type_ids is not None:
        arrays["token_type_ids"] = np.where(mask_BT, store.type_ids[where_BT], 0).astype(np.int64)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
