"""A linear that holds only the blocks of its weight that aren't zero, and multiplies only those: gather, one batched product, add.

Of what torch offers on a CPU this was the fastest. One thread, 90 % zeros, blocks of 32x32, 1024 features in and out: the dense product takes 59 us for
one row and 677 us for 32, this 27 and 128, `torch.sparse_bsr` 38 and 321, `sparse_csr` 74 and 181. It needs large blocks in a large weight: at 50 %
zeros, with blocks of 16x16 or 4x4, or with 256 features, one row takes longer than in the dense product.

Shapes: X any leading dimensions, N rows of an input, O outputs, I inputs, K kept blocks of h outputs and w inputs, R = O / h and C = I / w.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill_system.errors import nearest


class BlockSparseLinear(nn.Module):
    """`x @ weight^T + bias` for inference, of a weight that is mostly blocks of zeros.

    Args:
        values_Khw: the kept blocks of the weight `[O, I]`.
        rows_K: of each the row of blocks, 0 <= row < R, ascending.
        columns_K: and the column, 0 <= column < C.
        out_features: O.
        in_features: I.
        bias_O: or None.
    """

    def __init__(
        self,
        values_Khw: Tensor,
        rows_K: Tensor,
        columns_K: Tensor,
        out_features: int,
        in_features: int,
        bias_O: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.block = (values_Khw.shape[1], values_Khw.shape[2])
        # Transposed once: a batched product of contiguous [N, w] and [w, h] needs no packing.
        self.values_Kwh = nn.Parameter(values_Khw.transpose(1, 2).contiguous(), requires_grad=False)
        self.bias = None if bias_O is None else nn.Parameter(bias_O.clone(), requires_grad=False)
        self.register_buffer("rows_K", rows_K)
        self.register_buffer("columns_K", columns_K)

    @classmethod
    def from_dense(cls, linear: nn.Module, block: tuple[int, int]) -> "BlockSparseLinear":
        """The same function as a Linear, or a Conv1D (GPT-2's, weight `[I, O]`), without its blocks of zeros.

        Args:
            linear: is left as it is.
            block: rows and columns of a block of the weight as it is stored.

        Raises:
            ValueError: the blocks don't divide the weight.
        """
        weight, (height, width) = linear.weight.detach(), block
        assert isinstance(weight, Tensor)
        if height < 1 or width < 1 or weight.shape[0] % height or weight.shape[1] % width:
            raise ValueError(f"blocks of {height}x{width} don't divide a weight of shape {list(weight.shape)}")
        if not isinstance(linear, nn.Linear):
            weight, height, width = weight.t(), width, height
        outputs, inputs = weight.shape
        blocks_RChw = weight.reshape(outputs // height, height, inputs // width, width).transpose(1, 2)
        rows_K, columns_K = blocks_RChw.ne(0).any(-1).any(-1).nonzero(as_tuple=True)
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        made = cls(
            blocks_RChw[rows_K, columns_K], rows_K, columns_K, outputs, inputs, None if bias is None else bias.detach()
        )
        return made.train(linear.training)

    def forward(self, x_XI: Tensor) -> Tensor:
        height, width = self.block
        x_NCw = x_XI.reshape(-1, self.in_features // width, width)
        parts_KNh = torch.bmm(x_NCw.transpose(0, 1).index_select(0, self.columns_K), self.values_Kwh)
        shape = (self.out_features // height, len(x_NCw), height)
        if self.bias is None:
            sums_RNh = parts_KNh.new_zeros(shape)
        else:
            sums_RNh = self.bias.view(shape[0], 1, height).repeat(1, len(x_NCw), 1)
        sums_RNh.index_add_(0, self.rows_K, parts_KNh)
        return sums_RNh.transpose(0, 1).reshape(*x_XI.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        blocks = (self.out_features // self.block[0]) * (self.in_features // self.block[1])
        return f"in_features={self.in_features}, out_features={self.out_features}, block={self.block}, kept={len(self.rows_K)} of {blocks}"


def sparsify(model: nn.Module, blocks: Mapping[str, tuple[int, int]]) -> list[str]:
    """Swaps linears of a loaded model for block-sparse ones, in place; for inference only.

    Args:
        model: its outputs stay, within rounding.
        blocks: (h, w) by the name of the weight, as `sparse.blocks_of` reads them from a folder.

    Returns:
        The names of the modules that were swapped.

    Raises:
        ValueError: nothing is named, a name is no weight of a Linear or Conv1D, or blocks don't divide one. The model is unchanged then.
    """
    from transformers.pytorch_utils import Conv1D

    if not blocks:
        raise ValueError("no weight is named: nothing would be made block-sparse")
    modules = dict(model.named_modules())
    made = {}
    for name, block in blocks.items():
        owner, _, parameter = name.rpartition(".")
        module = modules.get(owner)
        if parameter != "weight" or not isinstance(module, nn.Linear | Conv1D):
            linears = [f"{n}.weight" for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D)]
            raise ValueError(f"{name} is no weight of a linear layer{nearest(name, linears)}")
        made[owner] = BlockSparseLinear.from_dense(module, block)
    for owner, module in made.items():
        model.set_submodule(owner, module)
    return list(made)
