"""`bench gradients`: what each representation costs beside a training pass, and how true it is.

Times are paired: every repeat runs every variant over the same batches, one after the other, and a
ratio is the median of the repeats' own ratios. Memory is measured in a process per variant.

Notation: n rows, M targets, P numbers of a row's exact gradient, D width of a sketch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evoselect_pipeline.bench.bergson_peer import Bergson
from evoselect_pipeline.bench.less_peer import BatchOne
from evoselect_pipeline.bench.memory import status_kib
from evoselect_pipeline.bench.reference import (
    SIZES,
    forward_backward,
    reference_adapter,
    reference_model,
    reference_rows,
)
from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.core.encoding import Encoded, Encoder, token_batches
from evoselect_pipeline.core.forward import padded
from evoselect_pipeline.core.gradients import (
    GradientExtractor,
    concatenate,
    extract_gradients,
    find_target_span,
)
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.representation import as_stored, make_extractor
from evoselect_pipeline.training.model_files import PLAYGROUND
from evoselect_pipeline.training.models import (
    load_base,
    load_encoder,
    load_proxy,
    with_adapter,
)

YARDSTICK = "forward + backward"
HALF = "bfloat16"
HEAD_DIM = 512  # of what has few numbers to begin with
BATCH_ONE = "batch 1, dense projection"
BERGSON = "bergson"
REFRESHED = ", refreshed proxy"


@dataclass(frozen=True)
class GradientsRequest:
    """What was asked for: the model, `small`, `big`, or a name, and how much of everything."""

    model: str
    num_rows: int
    num_targets: int
    num_fidelity: int
    dim: int
    prompt_weight: float
    batch_tokens: int
    repeats: int
    seed: int
    with_bergson: bool = False


@dataclass(frozen=True)
class Subject:
    """What is measured on: a model with an adapter, rows, and targets.

    The adapter is a fresh one, if none is given: features are taken with the bare proxy, unless
    `refresh_proxy` is set. Its factor A has no gradient then, and a pass has less to do.
    """

    model: ModelSettings
    trained_adapter: Path
    lora: LoraSettings
    rows: tuple[Encoded, ...]  # to time
    judged: tuple[Encoded, ...]  # whose exact gradients are held against
    targets: tuple[Encoded, ...]
    batch_tokens: int
    seed: int
    adapter: Path | None = None

    def refreshed(self) -> Subject:
        """The same with the trained adapter."""
        return replace(self, adapter=self.trained_adapter)

    def has_gradient(self, parameter: str) -> bool:
        """Whether a parameter is a factor of the adapter that has a gradient."""
        return "lora_B" in parameter or ("lora_A" in parameter and self.adapter is not None)

    @cached_property
    def batches(self) -> list[list[Encoded]]:
        """The rows in batches of like length, the same for every variant."""
        return token_batches(self.rows, self.batch_tokens)

    @cached_property
    def encoder(self) -> Encoder:
        """The model's own encoder."""
        return load_encoder(self.model)

    def trainable(self) -> Any:
        """The model with its adapter, to be trained on."""
        model = load_base(self.model)
        return with_adapter(model, self.adapter, self.lora, self.seed, trainable=True)

    def for_peers(self) -> Any:
        """The model with its adapter, of which the factors that have a gradient are trainable."""
        model = self.trainable().eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.has_gradient(name))
        return model

    def model_in(self, dtype: str | None) -> ModelSettings:
        """The model in a type of numbers, its own if none is given."""
        return self.model if dtype is None else self.model.model_copy(update={"dtype": dtype})

    def extractor(self, settings: GradientSettings, dtype: str | None = None) -> GradientExtractor:
        """The extractor of a representation."""
        proxy = load_proxy(self.model_in(dtype), self.adapter, self.lora, self.seed)
        return make_extractor(proxy, self.encoder, settings, self.seed)


@dataclass(frozen=True)
class Variant:
    """One way to represent rows; without settings it is a pass that represents none."""

    name: str
    settings: GradientSettings | None = None
    with_span: bool = False
    dtype: str | None = None
    refreshed: bool = False  # with the trained adapter
    peer: str | None = None  # in `PEERS`


def variants(dim: int, prompt_weight: float, with_bergson: bool = False) -> list[Variant]:
    """Plain passes, what is compared with them, and the peers."""

    def of(width: int = dim, **keys: Any) -> GradientSettings:
        return GradientSettings(prompt_weight=prompt_weight, dim=width, **keys)

    return [
        Variant("forward only"),
        Variant(YARDSTICK),
        Variant(f"{YARDSTICK}, {HALF}", dtype=HALF),
        Variant("LoRA training pass"),
        Variant("lora", of()),
        Variant("lora, target span", of(), with_span=True),
        Variant(f"lora{REFRESHED}", of(), refreshed=True),
        Variant(f"lora, {HALF}", of(), dtype=HALF),
        Variant("lora, top half", of(top_layers=0.5)),
        Variant("two_sided", of(representation="two_sided")),
        Variant("lm_head", of(HEAD_DIM, representation="lm_head")),
        Variant("hidden", of(HEAD_DIM, representation="hidden")),
        *(
            Variant(f"{peer}{REFRESHED if refreshed else ''}", of(), refreshed=refreshed, peer=peer)
            for peer in ((BATCH_ONE, BERGSON) if with_bergson else (BATCH_ONE,))
            for refreshed in (False, True)
        ),
    ]


def measure_gradients(request: GradientsRequest) -> dict[str, Any]:
    """Measure cost, memory and truth of every variant, on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        subject = prepare(request, Path(folder))
        found = variants(request.dim, request.prompt_weight, request.with_bergson)
        passes = {variant.name: run_of(subject, variant) for variant in found}
        seconds = _timed(passes, request.repeats)
        del passes
        truth = fidelity(subject, found)
        peaks = {}
        for number, variant in enumerate(found):
            peaks[variant.name] = peak_mb(subject, variant)
            progress("variants for memory", number + 1, len(found))
        results = [
            _result(variant, seconds, len(subject.rows), peaks[variant.name])
            | truth.get(variant.name, {"spearman": None, "spearman_rows": None})
            for variant in found
        ]
        lengths = [len(row.input_ids) for row in subject.rows]
        adapted = with_adapter(load_base(subject.model), subject.adapter, subject.lora, 0)
        return {
            "results": results,
            "num_rows": len(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "num_parameters": sum(p.numel() for p in adapted.base_model.parameters()),
            "gradient_size": sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n),
        }


def prepare(request: GradientsRequest, folder: Path) -> Subject:
    """Make or load the model, and train its adapter for a moment."""
    is_reference, lora = request.model in SIZES, LoraSettings()
    encoder = load_encoder(ModelSettings(name=PLAYGROUND if is_reference else request.model))
    num_rows = max(request.num_rows, request.num_fidelity)
    rows = reference_rows(encoder, num_rows + request.num_targets, request.seed)
    settings = ModelSettings(name=request.model)
    if is_reference:
        settings = reference_model(request.model, encoder.tokenizer, rows, folder / "model")
    adapter = reference_adapter(settings, lora, rows, folder, request.seed)
    return Subject(
        settings,
        adapter,
        lora,
        rows=tuple(rows[: request.num_rows]),
        judged=tuple(rows[: request.num_fidelity]),
        targets=tuple(rows[num_rows:]),
        batch_tokens=request.batch_tokens,
        seed=request.seed,
    )


def _result(
    variant: Variant, seconds: dict[str, list[float]], num_rows: int, peak: float
) -> dict[str, Any]:
    own = np.array(seconds[variant.name])
    yardstick = YARDSTICK if variant.dtype is None else f"{YARDSTICK}, {variant.dtype}"
    beside = own / np.array(seconds[yardstick])

    def ratio_to(peer: str) -> float | None:
        took = seconds.get(f"{peer}{REFRESHED if variant.refreshed else ''}")
        return None if took is None else float(np.median(own / np.array(took)))

    return {
        "representation": variant.name,
        "dim": None if variant.settings is None else variant.settings.dim,
        "samples_per_s": num_rows / float(np.median(own)),
        "ratio_to_forward_backward": float(np.median(beside)),
        "ratio_range": [float(beside.min()), float(beside.max())],
        "ratio_to_batch1": ratio_to(BATCH_ONE),
        "ratio_to_bergson": ratio_to(BERGSON),
        "peak_mb": peak,
    }


def _timed(passes: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    done, total = 0, (repeats + 1) * len(passes)
    for repeat in range(repeats + 1):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:  # the first is warm-up: kernels are chosen, signs are drawn
                seconds[name].append(time.perf_counter() - started)
            done += 1
            progress("timed passes", done, total)
    return seconds


def run_of(subject: Subject, variant: Variant) -> Callable[[], None]:
    """A variant's pass over all batches, with everything loaded beforehand."""
    pad_id = subject.encoder.pad_id
    if variant.settings is None:
        is_lora = variant.name == "LoRA training pass"
        model = subject.trainable() if is_lora else load_base(subject.model_in(variant.dtype))
        run = _forward if variant.name == "forward only" else forward_backward

        def plain() -> None:
            for batch in subject.batches:
                run(model, batch, pad_id)
                model.zero_grad(set_to_none=True)

        return plain
    if variant.peer:
        return PEERS[variant.peer](_worn(subject, variant.refreshed), variant.settings.dim)
    extractor = _extractor(subject, variant)
    span = None
    if variant.with_span:
        span = find_target_span(extractor, subject.targets, batch_tokens=subject.batch_tokens)

    def extract() -> None:
        for batch in subject.batches:
            extractor(batch, span)

    return extract


def _extractor(subject: Subject, variant: Variant) -> GradientExtractor:
    assert variant.settings is not None
    return _worn(subject, variant.refreshed).extractor(variant.settings, variant.dtype)


def _worn(subject: Subject, refreshed: bool) -> Subject:
    return subject.refreshed() if refreshed else subject


@torch.inference_mode()
def _forward(model, batch: Sequence[Encoded], pad_id: int) -> None:
    device = next(model.parameters()).device
    ids = padded([row.input_ids for row in batch], pad_id, device)
    model(input_ids=ids, use_cache=False)


PEERS = {BATCH_ONE: BatchOne, BERGSON: Bergson}


def fidelity(subject: Subject, found: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """Rank correlation of cosines with those of exact gradients of the same adapter, all layers.

    `spearman` is over pairs of rows and targets, `spearman_rows` over pairs of rows.
    """
    from scipy.stats import spearmanr

    rows = [*subject.judged, *subject.targets]

    @cache
    def exact(refreshed: bool, prompt_weight: float) -> tuple[np.ndarray, np.ndarray]:
        whole = _exact(_worn(subject, refreshed), rows, prompt_weight)
        return _cosines(whole, len(subject.targets))

    truth = {}
    represented = [(variant, variant.settings) for variant in found if variant.settings]
    for number, (variant, settings) in enumerate(represented):
        weight = 0.0 if variant.peer else settings.prompt_weight  # peers know the answer's alone
        vectors_of = _peer_vectors if variant.peer else _vectors
        own = _cosines(vectors_of(subject, variant, rows), len(subject.targets))
        pairs = zip(exact(variant.refreshed, weight), own, strict=True)
        to_targets, between = (float(spearmanr(one, other)[0]) for one, other in pairs)  # type: ignore[arg-type]
        truth[variant.name] = {"spearman": to_targets, "spearman_rows": between}
        progress("variants for fidelity", number + 1, len(represented))
    return truth


def _exact(subject: Subject, rows: Sequence[Encoded], prompt_weight: float) -> np.ndarray:
    """The pieces themselves, unsketched, [n, P]."""
    extractor = subject.extractor(GradientSettings(prompt_weight=prompt_weight))
    whole = []
    for row in rows:
        pieces: dict[str, torch.Tensor] = {}
        extractor.measure(
            extractor.causal, [row], lambda name, piece, into=pieces: into.update({name: piece[0]})
        )
        whole.append(torch.cat([pieces[name] for name in sorted(pieces)]).cpu().numpy())
    return np.stack(whole)


def _peer_vectors(subject: Subject, variant: Variant, rows: Sequence[Encoded]) -> np.ndarray:
    assert variant.settings is not None
    assert variant.peer is not None
    peer = PEERS[variant.peer](_worn(subject, variant.refreshed), variant.settings.dim)
    return torch.cat([peer.vectors([row]) for row in rows]).cpu().numpy()


def _vectors(subject: Subject, variant: Variant, rows: Sequence[Encoded]) -> np.ndarray:
    extractor = _extractor(subject, variant)
    span = find_target_span(extractor, subject.targets) if variant.with_span else None
    batches = extract_gradients(extractor, rows, span=span, batch_tokens=subject.batch_tokens)
    found = concatenate(list(batches))
    place_of = {sample_id: place for place, sample_id in enumerate(found.sample_ids)}
    in_order = found.take([place_of[row.sample_id] for row in rows])
    folded = span.folded if span else np.zeros((0, extractor.dim), np.float32)
    return as_stored(in_order, folded).vectors


def _cosines(vectors: np.ndarray, num_targets: int) -> tuple[np.ndarray, np.ndarray]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, targets = unit[:-num_targets], unit[-num_targets:]
    above = np.triu_indices(len(rows), 1)
    return (rows @ targets.T).ravel(), (rows @ rows.T)[above]


def peak_mb(subject: Subject, variant: Variant) -> float:
    """Memory that the pass takes above what the loaded model does, in MB, in its own process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_mb, subject, variant).result()


def _peak_mb(subject: Subject, variant: Variant) -> float:
    torch.set_num_threads(1)
    run = run_of(subject, variant)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    # Forget the peak of loading, and give back what it freed, which the pass would use again.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmRSS")
    run()
    return (status_kib("VmHWM") - before) / 1024
