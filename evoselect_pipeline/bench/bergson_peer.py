"""bergson as a peer of `bench gradients`; it is installed in the benchmark's own environment alone.

Its collector hooks the adapter's linear layers, of a fresh adapter those that are factor B, and
projects each one's gradient from both sides, per row, in the batches that every variant gets.

References
----------
EleutherAI, "bergson", https://github.com/EleutherAI/bergson
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from evoselect_pipeline.core.encoding import IGNORED_LABEL, Encoded
from evoselect_pipeline.core.forward import padded
from evoselect_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from evoselect_pipeline.bench.gradients import Subject


class Bergson:
    """Projected gradients of the adapter's layers, as bergson collects them.

    Parameters
    ----------
    dim : int
        Width that the layers' projections have together, or the next above: all are squares of the
        same size.
    """

    def __init__(self, subject: Subject, dim: int):
        try:
            from bergson.collector.collector import fwd_bwd_factory
            from bergson.collector.gradient_collectors import GradientCollector
            from bergson.config import IndexConfig
            from bergson.gradients import GradientProcessor
            from datasets import Dataset
        except ImportError as error:
            raise ConfigError(
                f"--bergson: {error}. It needs packages that the project does not: give it an"
                " environment of its own, pip install evoselect-pipeline bergson==2.5.1"
            ) from None
        self.subject = subject
        self.model = subject.for_peers()
        self.names = sorted(
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and subject.has_gradient(name)
        )
        side = math.ceil(math.sqrt(dim / len(self.names)))
        config = IndexConfig(run_path="unused", loss_reduction="mean")
        self.collector = GradientCollector(
            model=self.model,
            target_modules=set(self.names),
            processor=GradientProcessor(projection_dim=side, projection_seed=subject.seed),
            data=Dataset.from_dict({"input_ids": [row.input_ids for row in subject.rows]}),
            cfg=config,
            skip_index=True,
        )
        self.pass_ = fwd_bwd_factory(config)

    def __call__(self) -> None:
        """Represent every row."""
        for batch in self.subject.batches:
            self.vectors(batch)

    def vectors(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """The projected gradients [B, D] of the rows' answer losses."""
        device = next(self.model.parameters()).device
        ids_BS = padded([row.input_ids for row in rows], self.subject.encoder.pad_id, device)
        labels_BS = padded([row.labels for row in rows], IGNORED_LABEL, device)
        with self.collector.with_batch():
            self.pass_(self.model, ids_BS, labels_BS, {})
        found = self.collector.mod_grads
        vectors_BD = torch.cat([found[name] for name in self.names], dim=1).float()
        found.clear()
        return vectors_BD
