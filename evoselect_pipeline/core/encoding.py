"""The one encoder: chat template to token ids and labels, for gradients, training and evaluation.

A row's gradient must be the gradient of the loss it is later trained with, so both read the same
ids and the same labels. Prompt tokens carry no loss; the answer and its stop token do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model sees it: `input_ids`, of which the first `num_prompt` carry no loss."""

    sample_id: str
    input_ids: tuple[int, ...]
    num_prompt: int

    @property
    def labels(self) -> list[int]:
        """Targets of the loss, one per token, with the prompt masked out."""
        return [IGNORED_LABEL] * self.num_prompt + list(self.input_ids[self.num_prompt :])

    @property
    def num_trained(self) -> int:
        """How many tokens carry loss."""
        return len(self.input_ids) - self.num_prompt


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that cannot be trained on, with a reason slug and a sentence for people."""

    sample_id: str
    reason: str
    detail: str


class Encoder:
    """Turn samples into token ids with a tokenizer's chat template.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Must have a chat template and an end-of-sequence token.
    max_length : int
        Longest row in tokens. Longer rows are unusable: an answer that is cut off would teach the
        model not to stop.
    stop_ids : sequence of int
        Further tokens that end an answer (some models end a turn with another token than EOS).

    Raises
    ------
    ConfigError
        If the tokenizer lacks what the encoding needs.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stop_ids: Sequence[int] = (),
    ):
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use an instruct"
                " model, or save a template with the tokenizer"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token")
        self.tokenizer = tokenizer
        self.max_length = max_length
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.stop_ids = sorted({int(eos), *map(int, stop_ids)})  # type: ignore[arg-type]
        self.pad_id = int(eos if pad is None else pad)  # type: ignore[arg-type]
        self._special_texts = [text for text in tokenizer.all_special_tokens if text]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a conversation becomes."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return digest(str(self.tokenizer.chat_template), vocabulary, self.stop_ids, self.max_length)

    def encode(self, samples: Sequence[Sample]) -> tuple[list[Encoded], list[Unusable]]:
        """Encode rows; those that cannot be trained on come back with their reason."""
        texts = [self._render(sample) for sample in samples]
        prompts = self._tokenize([prompt for prompt, _ in texts])
        wholes = self._tokenize([whole for _, whole in texts])
        encoded: list[Encoded] = []
        unusable: list[Unusable] = []
        for sample, prompt, whole in zip(samples, prompts, wholes, strict=True):
            row = self._encode_one(sample, prompt, whole)
            (encoded if isinstance(row, Encoded) else unusable).append(row)  # type: ignore[arg-type]
        return encoded, unusable

    def encode_prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Encode the conversations up to the answer, as the model is asked in evaluation."""
        return self._tokenize([self._render(sample)[0] for sample in samples])

    def _render(self, sample: Sample) -> tuple[str, str]:
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        render = self.tokenizer.apply_chat_template
        prompt = render(turns[:-1], tokenize=False, add_generation_prompt=True)
        return str(prompt), str(render(turns, tokenize=False))

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # The template writes the special tokens itself.
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def _encode_one(self, sample: Sample, prompt: list[int], whole: list[int]):
        def unusable(reason: str, detail: str) -> Unusable:
            return Unusable(sample.sample_id, reason, detail)

        for message in sample.messages:
            for text in self._special_texts:
                if text in message.content:
                    return unusable("special_token_in_text", f"the text contains {text!r}")
        if whole[: len(prompt)] != prompt:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template renders a prompt that is not the"
                " start of the whole conversation, so the loss mask would be wrong; use a template"
                " whose generation prompt is a prefix of its assistant turn"
            )
        answer = whole[len(prompt) :]
        stops = [place for place, token in enumerate(answer) if token in self.stop_ids]
        if not stops:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template ends an answer with none of the"
                f" stop tokens {self.stop_ids}, so the model would never learn to stop"
            )
        answer = answer[: stops[0] + 1]  # templates may add a line break that is not to be learned
        length = len(prompt) + len(answer)
        if length > self.max_length:
            return unusable("too_long", f"{length} tokens, more than {self.max_length}")
        return Encoded(sample.sample_id, tuple(prompt + answer), len(prompt))


def token_batches(
    rows: Sequence[Encoded], batch_tokens: int, *, longest_first: bool = False
) -> list[list[Encoded]]:
    """Group rows of like length so that a padded batch holds at most `batch_tokens` tokens.

    The order is fixed by (length, id): the same rows give the same batches whatever order they
    come in. A single row longer than the budget forms a batch of its own.
    """
    ordered = sorted(rows, key=lambda row: (len(row.input_ids), row.sample_id))
    batches: list[list[Encoded]] = []
    for row in ordered:
        if batches and (len(batches[-1]) + 1) * len(row.input_ids) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches[::-1] if longest_first else batches
