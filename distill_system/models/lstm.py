"""A recurrent text classifier: embeddings, LSTM layers in one or both directions, a pooled state, a linear head.

    i, f, g, o = split(W x_t + U h_{t-1} + b)
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g),  h_t = sigmoid(o) * tanh(c_t)

Hochreiter & Schmidhuber 1997 (https://doi.org/10.1162/neco.1997.9.8.1735), with the forget gate of Gers et al. 2000; gates lie in torch.nn.LSTM's order.
W and U are linears of their own, so that whatever swaps, masks or stores linears finds them. This file needs nothing but torch and transformers: a copy
of it lies in the folder of such a model, for `from_pretrained(folder, trust_remote_code=True)`.

Shapes: B rows, T tokens, D features going in, H units of a direction, E features coming out (H or 2 H), C classes.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class LstmConfig(PreTrainedConfig):
    """Settings: `hidden_size` counts the units of one direction, `pooling` is `mean` (of real tokens) or `last` (of each direction)."""

    model_type = "lstm"

    vocab_size: int = 260
    embedding_size: int = 64
    hidden_size: int = 64
    num_hidden_layers: int = 1
    bidirectional: bool = True
    pooling: Literal["mean", "last"] = "mean"
    hidden_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    initializer_range: float = 0.1
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class Inwards(nn.Linear):
    """W and b."""


class Recurrent(nn.Linear):
    """U. It is asked for its matrix: what goes into it says nothing of the states that are multiplied with it."""

    weight_only = True


class Direction(nn.Module):
    """An LSTM layer that reads the tokens one way.

    U's module is called once, with the identity, and what it gives (its matrix, to the bit, in whatever way it is kept) is used at every token. Called for
    each token, it would be unpacked, quantized or gathered from other ranks as often, and ranks whose texts differ in length would wait for one another.
    """

    def __init__(self, features: int, units: int, *, backwards: bool) -> None:
        super().__init__()
        self.units, self.backwards = units, backwards
        self.input = Inwards(features, 4 * units)
        self.recurrent = Recurrent(units, 4 * units, bias=False)

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """States `[B, T, H]`, and the last one read `[B, H]`; at padding both states stay what they were."""
        gates_TBG = self.input(x_BTD).unbind(1)
        matrix_HG = self.recurrent(torch.eye(self.units, dtype=x_BTD.dtype, device=x_BTD.device))
        state_BH = cell_BH = gates_TBG[0].new_zeros(len(x_BTD), self.units)
        places = range(len(gates_TBG))
        states = [state_BH for _ in places]
        for t in reversed(places) if self.backwards else places:
            i_BH, f_BH, g_BH, o_BH = torch.addmm(gates_TBG[t], state_BH, matrix_HG).chunk(4, 1)
            next_cell_BH = f_BH.sigmoid() * cell_BH + i_BH.sigmoid() * g_BH.tanh()
            next_state_BH = o_BH.sigmoid() * next_cell_BH.tanh()
            if real_BT is None:
                cell_BH, state_BH = next_cell_BH, next_state_BH
            else:
                real_B1 = real_BT[:, t : t + 1]
                cell_BH = torch.where(real_B1, next_cell_BH, cell_BH)
                state_BH = torch.where(real_B1, next_state_BH, state_BH)
            states[t] = state_BH
        return torch.stack(states, 1), state_BH


class Layer(nn.Module):
    """An LSTM layer, both ways where `both` says so."""

    def __init__(self, features: int, units: int, *, both: bool) -> None:
        super().__init__()
        self.forwards = Direction(features, units, backwards=False)
        self.backwards = Direction(features, units, backwards=True) if both else None

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """States `[B, T, E]` and the last ones read `[B, E]`, the two directions side by side."""
        found = self.forwards(x_BTD, real_BT)
        if self.backwards is None:
            return found  # type: ignore[no-any-return]
        states, last = zip(found, self.backwards(x_BTD, real_BT), strict=True)
        return torch.cat(states, -1), torch.cat(last, -1)


class LstmPreTrainedModel(PreTrainedModel):
    """How the weights begin: U orthogonal (Saxe et al. 2013), W after Glorot, forget gates open (Jozefowicz et al. 2015)."""

    config_class = LstmConfig
    base_model_prefix = "lstm"
    main_input_name = "input_ids"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Recurrent):
            init.orthogonal_(module.weight)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, Inwards) and not getattr(module.bias, "_is_hf_initialized", False):
                module.bias.view(4, -1)[1].fill_(1.0)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


class LstmModel(LstmPreTrainedModel):
    """Embeddings and layers."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        if config.pooling not in ("mean", "last"):
            raise ValueError(f"pooling is {config.pooling!r}, must be mean or last")
        width = (2 if config.bidirectional else 1) * config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.layers = nn.ModuleList(
            Layer(width if number else config.embedding_size, config.hidden_size, both=config.bidirectional)
            for number in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """`last_hidden_state` is the pooled state `[B, E]`; `hidden_states` begins with the embeddings `[B, T, D]`."""
        real_BT = None if attention_mask is None else attention_mask.bool()
        x_BTD = self.embeddings(input_ids)
        hidden, last_BE = [x_BTD], x_BTD[:, 0]
        for layer in self.layers:
            x_BTD, last_BE = layer(self.dropout(x_BTD), real_BT)
            hidden.append(x_BTD)
        if self.config.pooling == "mean":
            last_BE = x_BTD.mean(1) if real_BT is None else _mean(x_BTD, real_BT)
        return BaseModelOutput(last_hidden_state=last_BE, hidden_states=tuple(hidden))


def _mean(x_BTE: Tensor, real_BT: Tensor) -> Tensor:
    """Over the real tokens of each row; 0 where there are none."""
    count_B1 = real_BT.sum(1, keepdim=True).clamp(min=1)
    return (x_BTE * real_BT.unsqueeze(-1)).sum(1) / count_B1


class LstmForSequenceClassification(LstmPreTrainedModel):
    """The body with a linear over its pooled state."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.lstm = LstmModel(config)
        chosen = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if chosen is None else chosen)
        self.classifier = nn.Linear((2 if config.bidirectional else 1) * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits `[B, C]`."""
        found = self.lstm(input_ids, attention_mask)
        logits_BC = self.classifier(self.dropout(found.last_hidden_state))
        return SequenceClassifierOutput(
            logits=logits_BC, hidden_states=found.hidden_states if output_hidden_states else None
        )
