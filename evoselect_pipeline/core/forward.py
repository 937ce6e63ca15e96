"""One padded pass of a frozen causal LM: hidden states, each row's losses, and their slope.

Rows are padded on the right: under a causal mask no token of a row sees the padding, so no mask
is needed and a row does not depend on its company. Logits are formed for the tokens that carry
loss alone, a chunk at a time, so memory does not grow with the batch.

Notation: B rows of a batch, S tokens, H width of the hidden states, V vocabulary, T tokens that
carry loss in the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 2**22  # logits formed at a time: 16 MiB in float32
LEAST_TOKENS = 128  # at a time: with fewer, reading a large vocabulary's weights takes the time
PROBE = (1, 2, 3)  # token ids that every vocabulary has


class Tokens(NamedTuple):
    """The tokens of a batch that carry loss.

    Attributes
    ----------
    rows, places : tensor [T], int64
        Row and position of the hidden state that predicts the token.
    ids : tensor [T], int64
        The token.
    answer, represented : tensor [T]
        Its weight in the row's answer loss, and in the loss that represents the row. Of each row
        the answer weights add up to 1.
    """

    rows: torch.Tensor
    places: torch.Tensor
    ids: torch.Tensor
    answer: torch.Tensor
    represented: torch.Tensor


class Errors(NamedTuple):
    """Losses [T] of some tokens, and their derivatives `slopes` [T, V]."""

    losses: torch.Tensor
    slopes: torch.Tensor


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Rows of many lengths as one tensor [B, S], filled up on the right."""
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], device=device)


class CausalPass:
    """A frozen causal LM of transformers, asked for hidden states and for token losses.

    Parameters
    ----------
    model : PreTrainedModel
        Put into evaluation mode and frozen.
    pad_id : int
        Token id that fills up shorter rows.
    prompt_weight : float
        Weight of the prompt tokens' mean loss beside the answer tokens', in the loss that
        represents a row.

    Raises
    ------
    ConfigError
        If the model's logits are not its output embedding of its last hidden state, scaled or
        capped as its configuration says.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, prompt_weight: float = 0.0):
        self.model = model.eval().requires_grad_(False)
        self.pad_id = pad_id
        self.prompt_weight = prompt_weight
        self.device = next(model.parameters()).device
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise self._unknown_head()
        self.head: nn.Module = head
        self.weight_VH = head.get_parameter("weight")
        config = model.config
        self.scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        self.cap = getattr(config, "final_logit_softcapping", None)
        self._check_head()

    def pad(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Token ids [B, S], filled up on the right."""
        return padded([row.input_ids for row in rows], self.pad_id, self.device)

    def hidden(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, S, H]."""
        return self.model.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state

    def tokens(self, rows: Sequence[Encoded], ids_BS: torch.Tensor) -> Tokens:
        """The answers' tokens, and the prompts' where these have weight."""
        place = torch.arange(1, ids_BS.shape[1], device=self.device)
        prompt_B1 = self._tensor(row.num_prompt for row in rows)[:, None]
        length_B1 = self._tensor(len(row.input_ids) for row in rows)[:, None]
        answer_BS = self._mean_of((place >= prompt_B1) & (place < length_B1))
        represented_BS = answer_BS
        if self.prompt_weight:
            # A row's first token is given, not predicted.
            represented_BS = answer_BS + self.prompt_weight * self._mean_of(place < prompt_B1)
        at = represented_BS.nonzero(as_tuple=True)
        return Tokens(at[0], at[1], ids_BS[:, 1:][at], answer_BS[at], represented_BS[at])

    def losses(self, hidden_BSH: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Each row's mean answer loss [B], in nats, float32."""
        losses_B = torch.zeros(len(hidden_BSH), device=self.device)
        for _ in self.errors_of(hidden_BSH, tokens, losses_B):
            pass
        return losses_B

    def losses_and_slope(
        self, hidden_BSH: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's mean answer loss [B], and d(representing loss) / d(hidden states) [B, S, H].

        Rows are summed, so each row's slope is its own. In closed form: autograd would write the
        logits twice more, a fifth of the whole pass for a small model.
        """
        losses_B = torch.zeros(len(hidden_BSH), device=self.device)
        slope_BSH = torch.zeros_like(hidden_BSH)
        for part, _, slopes_TV in self.errors_of(hidden_BSH, tokens, losses_B):
            error_TV = slopes_TV.mul_(part.represented[:, None])
            slope_BSH[part.rows, part.places] = error_TV.to(slope_BSH.dtype) @ self.weight_VH
        return losses_B, slope_BSH

    @torch.no_grad()
    def errors_of(
        self, hidden_BSH: torch.Tensor, tokens: Tokens, losses_B: torch.Tensor
    ) -> Iterator[tuple[Tokens, torch.Tensor, torch.Tensor]]:
        """Some of the tokens at a time, their hidden states [T, H] and the slopes of `errors`.

        Rows' answer losses are added to `losses_B` on the way. A part is so small that its logits
        are not too many.
        """
        size = max(LEAST_TOKENS, CHUNK_LOGITS // self.weight_VH.shape[0])
        for columns in zip(*(column.split(size) for column in tokens), strict=True):
            part = Tokens(*columns)
            states_TH = hidden_BSH[part.rows, part.places]
            found = self.errors(states_TH, part.ids)
            losses_B.index_add_(0, part.rows, found.losses * part.answer)
            yield part, states_TH, found.slopes

    def errors(self, states_TH: torch.Tensor, ids_T: torch.Tensor) -> Errors:
        r"""Losses [T] of the tokens, and their derivatives by the output embedding's output [T, V].

        .. math::
            z = c \tanh(\alpha W h / c), \qquad
            \partial \ell / \partial (W h) = \alpha (1 - z^2 / c^2) (softmax(z) - e_{id})

        with a scale and a cap c that most models lack.
        """
        z_TV = self.head(states_TH).float()
        if self.scale != 1.0:
            z_TV = z_TV * self.scale
        if self.cap:
            z_TV = self.cap * torch.tanh(z_TV / self.cap)
            bend_TV = 1.0 - (z_TV / self.cap).square()
        highest_T1 = z_TV.amax(dim=1, keepdim=True)
        own_T1 = ids_T[:, None]
        loss_T1 = highest_T1 - z_TV.gather(1, own_T1)
        z_TV.sub_(highest_T1).exp_()  # in place: these are the largest tensors of the whole pass
        total_T1 = z_TV.sum(dim=1, keepdim=True)
        loss_T1 += total_T1.log()
        z_TV.div_(total_T1).scatter_add_(1, own_T1, torch.full_like(total_T1, -1.0))
        if self.cap:
            z_TV *= bend_TV
        return Errors(loss_T1[:, 0], z_TV.mul_(self.scale) if self.scale != 1.0 else z_TV)

    def _mean_of(self, mask_BS: torch.Tensor) -> torch.Tensor:
        """Equal weights that add up to 1 over what the mask lets through."""
        return mask_BS / mask_BS.sum(1, keepdim=True).clamp(min=1)

    def _tensor(self, values: Iterable) -> torch.Tensor:
        return torch.tensor(list(values), device=self.device)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Hold the closed form against the model's own logits, for two tokens."""
        ids = torch.tensor([PROBE], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        expected = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        found = self.errors(self.hidden(ids)[0, :-1], ids[0, 1:]).losses
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
            raise self._unknown_head()

    def _unknown_head(self) -> ConfigError:
        return ConfigError(
            f"{self.model.config.name_or_path or type(self.model).__name__}: its logits are not its"
            " output embedding of its last hidden state, and how they are made is not known; use"
            " another model as proxy"
        )
