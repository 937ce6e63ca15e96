"""What represents a row: gradients of adapted layers or of the output embedding, or hidden states.

Each is a callable that puts a batch through the model once and hands the pieces of the rows'
vectors over, see `gradients.Measure`.

Notation: B rows of a batch, S tokens, T tokens that carry loss, i and o the width of a linear
layer's input and output, r the LoRA rank, H the width of the hidden states, V the vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.forward import CausalPass
from evoselect_pipeline.core.gradients import Add
from evoselect_pipeline.errors import ConfigError

# Given a layer's input [B, S, i], then the gradient of its output [B, S, o]: pieces [B, P].
Pieces = Callable[[torch.Tensor], Iterator[tuple[str, torch.Tensor]]]
Watch = Callable[[torch.Tensor], Pieces]


@dataclass(frozen=True)
class LoraFactors:
    r"""Gradients of a linear layer's LoRA factors A and B, and the adapter's scale alpha.

    With the layer's input X [B, S, i] and the gradient of its output Y' [B, S, o], those of row n
    are

    .. math::
        \partial B_n = \alpha \sum_s y'_{ns} (A x_{ns})^T \in R^{o \times r}, \qquad
        \partial A_n = \alpha \sum_s (B^T y'_{ns}) x_{ns}^T \in R^{r \times i}

    so no tensor of o * i numbers is formed.

    Attributes
    ----------
    down_ri : tensor [r, i]
        A.
    up_ro : tensor [r, o], contiguous
        B, transposed.
    scale : float
    fresh : bool
        B is zero, as in a fresh adapter: A has no gradient then.
    """

    down_ri: torch.Tensor
    up_ro: torch.Tensor
    scale: float
    fresh: bool

    def __call__(self, input_BSi: torch.Tensor) -> Pieces:
        """Watch one pass; see `Watch`."""
        # The thin operand goes first and `linear` gets contiguous weights: on a CPU both products
        # then take a third of the time.
        reduced_BSr = linear(input_BSi, self.down_ri)
        kept = None if self.fresh else input_BSi

        def pieces(grad_BSo: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
            yield "up", self.scale * (reduced_BSr.transpose(1, 2) @ grad_BSo)
            if kept is not None:
                back_BSr = linear(grad_BSo, self.up_ro)
                yield "down", self.scale * (back_BSr.transpose(1, 2) @ kept)

        return pieces


@dataclass(frozen=True)
class TwoSided:
    r"""A linear layer's weight gradient seen from both sides, R^T (\sum_s y'_s x_s^T) Q [a, b]."""

    left_ao: torch.Tensor
    right_bi: torch.Tensor

    def __call__(self, input_BSi: torch.Tensor) -> Pieces:
        """Watch one pass; see `Watch`."""
        reduced_BSb = linear(input_BSi, self.right_bi)

        def pieces(grad_BSo: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
            yield "sides", linear(grad_BSo, self.left_ao).transpose(1, 2) @ reduced_BSb

        return pieces


class LayerGradients:
    """Gradients of the representing loss, watched at some linear layers.

    The row losses are summed before the backward pass: each row's output gradient is then its own,
    whatever it is batched with. The model's parameters get no gradients, and the pass stops below
    the lowest watched layer.

    Raises
    ------
    ConfigError
        If there is nothing to watch, or a layer does not take rows of tokens, once in a pass.
    """

    def __init__(self, model: nn.Module, watches: Mapping[str, Watch]):
        if not watches:
            raise ConfigError("no adapted layers: the gradient would be empty; check lora.targets")
        self._names = tuple(watches)
        self._add: Add | None = None
        self._seen: list[str] = []
        for name, watch in watches.items():
            model.get_submodule(name).register_forward_hook(self._hook(name, watch))

    def __call__(self, causal: CausalPass, rows: Sequence[Encoded], add: Add) -> torch.Tensor:
        """Put rows through the model, forward and back; their losses [B]."""
        self._add, self._seen = add, []
        try:
            ids_BS = causal.pad(rows)
            with torch.enable_grad():
                hidden_BSH = causal.hidden(ids_BS)
            losses_B, slope_BSH = causal.losses_and_slope(
                hidden_BSH.detach(), causal.tokens(rows, ids_BS)
            )
            hidden_BSH.backward(slope_BSH)
        finally:
            self._add = None
        if sorted(self._seen) != sorted(self._names):
            odd = next(n for n in self._names if self._seen.count(n) != 1)
            raise ConfigError(
                f"{odd} got a gradient {self._seen.count(odd)} times in a pass, expected once:"
                " features would be wrong; leave it out of lora.targets"
            )
        return losses_B

    def _hook(self, name: str, watch: Watch):
        def after_forward(_module, inputs, output_BSo):
            if self._add is None:  # somebody else's forward pass
                return
            if inputs[0].dim() != 3:
                raise ConfigError(
                    f"{name} takes {inputs[0].dim()} dimensions, expected [rows, tokens, width]:"
                    " whose token is whose is not known there (a mixture of experts?); leave it"
                    " out of lora.targets"
                )
            if not output_BSo.requires_grad:
                output_BSo.requires_grad_(True)  # nothing below here needs the backward pass
            pieces = watch(inputs[0].detach())
            output_BSo.register_hook(lambda grad_BSo: collect(pieces, grad_BSo))

        def collect(pieces: Pieces, grad_BSo: torch.Tensor) -> None:
            assert self._add is not None
            self._seen.append(name)
            for suffix, piece in pieces(grad_BSo):
                self._add(f"{name}.{suffix}", piece.flatten(1))

        return after_forward


class HeadGradients:
    r"""The output embedding's own gradient, in closed form and from a forward pass alone.

    With a token's hidden state h and its error e = softmax(z) - e_id, the gradient is the sum of
    e h^T over tokens [V, H]; both sides are sketched by random signs first.
    """

    def __init__(self, weight_VH: torch.Tensor, dim: int, seed: int):
        (vocabulary, width), side = weight_VH.shape, math.isqrt(dim)
        device = weight_VH.device
        self.left_Va = _signs(f"{seed}/head/left", (vocabulary, side)).to(device)
        self.right_Hb = _signs(f"{seed}/head/right", (width, dim // side)).to(device)

    @torch.inference_mode()
    def __call__(self, causal: CausalPass, rows: Sequence[Encoded], add: Add) -> torch.Tensor:
        """Put rows through the model, forward; their losses [B]."""
        ids_BS = causal.pad(rows)
        hidden_BSH, tokens = causal.hidden(ids_BS), causal.tokens(rows, ids_BS)
        outer_Bab = hidden_BSH.new_zeros(
            len(rows), self.left_Va.shape[1], self.right_Hb.shape[1], dtype=torch.float32
        )
        losses_B = outer_Bab.new_zeros(len(rows))
        for part, states_TH, slopes_TV in causal.errors_of(hidden_BSH, tokens, losses_B):
            error_Ta = (slopes_TV @ self.left_Va) * part.represented[:, None]
            state_Tb = states_TH.float() @ self.right_Hb
            outer_Bab.index_add_(0, part.rows, error_Ta[:, :, None] * state_Tb[:, None, :])
        add("head", outer_Bab.flatten(1))
        return losses_B


class PooledStates:
    """The mean of a row's last hidden states: no gradient at all, and the baseline for those."""

    @torch.inference_mode()
    def __call__(self, causal: CausalPass, rows: Sequence[Encoded], add: Add) -> torch.Tensor:
        """Put rows through the model, forward; their losses [B]."""
        ids_BS = causal.pad(rows)
        hidden_BSH = causal.hidden(ids_BS)
        lengths_B = torch.tensor([len(row.input_ids) for row in rows], device=causal.device)
        inside_BS = torch.arange(ids_BS.shape[1], device=causal.device) < lengths_B[:, None]
        summed_BH = (hidden_BSH.float() * inside_BS[:, :, None]).sum(1)
        add("hidden", summed_BH / lengths_B[:, None])
        return causal.losses(hidden_BSH, causal.tokens(rows, ids_BS))


def two_sided(layers: Mapping[str, LoraFactors], dim: int, seed: int) -> dict[str, TwoSided]:
    """Random signs on both sides of the adapted layers; all pieces together fill `dim` numbers."""
    side = math.isqrt(dim // max(1, len(layers)))
    if side < 1:
        raise ConfigError(
            f"gradients.dim {dim}: too narrow for {len(layers)} layers, expected at least one"
            " number a layer; raise it or watch fewer layers"
        )
    return {
        name: TwoSided(
            _signs(f"{seed}/{name}/left", (side, layer.up_ro.shape[1])).to(layer.up_ro),
            _signs(f"{seed}/{name}/right", (side, layer.down_ri.shape[1])).to(layer.down_ri),
        )
        for name, layer in layers.items()
    }


def top_blocks(names: Iterable[str], share: float) -> list[str]:
    """The layers of the top `share` of the decoder blocks, by the first number in their names.

    Layers outside the blocks have no number and stay.
    """
    block_of = {name: _block_number(name) for name in names}
    numbers = sorted({number for number in block_of.values() if number is not None})
    keep = set(numbers[len(numbers) - max(1, round(share * len(numbers))) :])
    return [name for name, number in block_of.items() if number is None or number in keep]


def _block_number(name: str) -> int | None:
    found = re.search(r"\.(\d+)(?:\.|$)", f".{name}")
    return int(found.group(1)) if found else None


def _signs(name: str, shape: tuple[int, int]) -> torch.Tensor:
    """Random signs, drawn on the CPU so that every device gets the same ones."""
    drawn = hashlib.sha256(name.encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
    signs = torch.randint(0, 2, shape, generator=draw, dtype=torch.int8) * 2 - 1
    return signs.float() / math.sqrt(min(shape))
