"""The one encoder: chat template to token ids and labels, for gradients, training and evaluation.

A row's gradient must be the gradient of the loss it is later trained with, so both read the same
ids and the same labels. Prompt tokens carry no loss; the answer and its stop token do.

What a message says is text, also where it spells a control token: only the chat template writes
those. Else a row could end its own turn, or speak for somebody else.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100
# Breaks the text of a control token in two. Drawn anew in each process, so that no text holds it.
MARK = secrets.token_hex(16)


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


class ChatTokenizer:
    """A tokenizer with its chat template, to which what a message says is text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Without a chat template it has nothing to `render`.
    stop_ids : sequence of int
        Tokens that end an answer.

    Raises
    ------
    ConfigError
        If the template cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]):
        self.tokenizer = tokenizer
        self.control_tokens = self._find_control_tokens(stop_ids)
        self._control_text = _any_of(self.control_tokens)

    def as_text(self, content: str) -> str:
        """Break the control tokens that a text spells, until it is tokenized."""
        return self._control_text.sub(rf"\g<0>{MARK}", content)

    def render(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation as the template writes it."""
        broken = [{**turn, "content": self.as_text(turn["content"])} for turn in turns]
        return self._apply_template(broken, add_generation_prompt=add_generation_prompt)

    def tokenize(self, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """Token ids; the template has written the special tokens itself."""
        if not texts:
            return []
        is_broken = any(MARK in text for text in texts)
        tokenizer = self._marked_tokenizer if is_broken else self.tokenizer
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]  # type: ignore[assignment]
        if not is_broken:
            return ids
        mark = tokenizer.convert_tokens_to_ids(MARK)
        return [[token for token in row if token != mark] for row in ids]

    def _find_control_tokens(self, stop_ids: Sequence[int]) -> list[str]:
        """Added tokens that steer the model: special ones, stops, and those that mark a turn.

        Some tokenizers do not call the tokens special that tell who speaks. Others are ordinary
        words of an answer, such as `<think>`, and stay what they are. So do tokens of a single
        character, which cannot be broken.
        """
        turn = ""
        if self.tokenizer.chat_template:
            said = [{"role": "user", "content": "x"}]
            turn = self._apply_template(said, add_generation_prompt=True)
        steering = set(self.tokenizer.all_special_tokens)
        for place, token in self.tokenizer.added_tokens_decoder.items():
            text = str(token)
            marks_a_turn = text in turn and re.search(r"[^\w\s]", text)
            if token.special or place in stop_ids or marks_a_turn:
                steering.add(text)
        return sorted(text for text in steering if len(text) > 1)

    def _apply_template(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template may do anything
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template fails on turns of"
                f" {', '.join(turn['role'] for turn in turns)}: {error}; for the student"
                " name one that takes them in model.chat_template, for the generator take another"
                " model"
            ) from error
        return str(text)

    @cached_property
    def _marked_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer for texts with marks: each is one token, which is taken out again."""
        from transformers import AddedToken

        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_tokens([AddedToken(MARK, normalized=False)])
        return tokenizer


class Encoder:
    """Turn samples into token ids with a tokenizer's chat template.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Must have a chat template and an end-of-sequence token. Without a padding token rows are
        padded with the latter; labels go by position, so no stop token is masked by that.
    max_length : int
        Longest row in tokens. Longer rows are unusable: an answer that is cut off would teach the
        model not to stop.
    stop_ids : sequence of int
        Further tokens that end an answer (some models end a turn with another token than EOS).

    Raises
    ------
    ConfigError
        If the tokenizer lacks what the encoding needs, or its template cannot be rendered.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stop_ids: Sequence[int] = (),
    ):
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, as is common for"
                " base models; name a Jinja file in model.chat_template, or use an instruct model"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token")
        self.tokenizer = tokenizer
        self.max_length = max_length
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.stop_ids = sorted({int(eos), *map(int, stop_ids)})  # type: ignore[arg-type]
        self.pad_id = int(eos if pad is None else pad)  # type: ignore[arg-type]
        self._chat = ChatTokenizer(tokenizer, self.stop_ids)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a conversation becomes."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return digest(str(self.tokenizer.chat_template), vocabulary, self.stop_ids, self.max_length)

    @property
    def template_fingerprint(self) -> str:
        """Hash of the template in which the model sees a conversation."""
        return digest(str(self.tokenizer.chat_template))

    @cached_property
    def control_ids(self) -> set[int]:
        """The tokens that only the chat template writes."""
        control, vocabulary = set(self._chat.control_tokens), self.tokenizer.get_vocab()
        return {*self.stop_ids, *(place for text, place in vocabulary.items() if text in control)}

    def encode(self, samples: Sequence[Sample]) -> tuple[list[Encoded], list[Unusable]]:
        """Encode rows; those that cannot be trained on come back with their reason."""
        texts = [self._render(sample) for sample in samples]
        prompts = self._chat.tokenize([prompt for prompt, _ in texts])
        wholes = self._chat.tokenize([whole for _, whole in texts])
        encoded: list[Encoded] = []
        unusable: list[Unusable] = []
        for sample, prompt, whole in zip(samples, prompts, wholes, strict=True):
            row = self._encode_one(sample, prompt, whole)
            (encoded if isinstance(row, Encoded) else unusable).append(row)  # type: ignore[arg-type]
        return encoded, unusable

    def encode_prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Encode the conversations up to the answer, as the model is asked in evaluation."""
        return self._chat.tokenize([self._render(sample)[0] for sample in samples])

    def _render(self, sample: Sample) -> tuple[str, str]:
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        prompt = self._chat.render(turns[:-1], add_generation_prompt=True)
        return prompt, self._chat.render(turns, add_generation_prompt=False)

    def _encode_one(
        self, sample: Sample, prompt: list[int], whole: list[int]
    ) -> Encoded | Unusable:
        if whole[: len(prompt)] != prompt:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template renders a prompt that is not the"
                " start of the whole conversation, so the loss mask would be wrong; name a"
                " template in model.chat_template whose assistant turn begins with its generation"
                " prompt and which leaves earlier turns as they are"
            )
        answer = whole[len(prompt) :]
        stops = [place for place, token in enumerate(answer) if token in self.stop_ids]
        if not stops:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template ends an answer with none of the"
                f" stop tokens {self.stop_ids}, so the model would never learn to stop; name one in"
                " model.chat_template that writes the end-of-text token after an answer"
            )
        answer = answer[: stops[0] + 1]  # templates may add a line break that is not to be learned
        length = len(prompt) + len(answer)
        if length > self.max_length:
            detail = f"{length} tokens, more than {self.max_length}"
            return Unusable(sample.sample_id, "too_long", detail)
        return Encoded(sample.sample_id, tuple(prompt + answer), len(prompt))


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern of the first character of every occurrence of the texts, overlapping ones too."""
    either = "|".join(map(re.escape, texts)) or "(?!)"
    return re.compile(f"(?={either}).", re.DOTALL)


def token_batches(rows: Sequence[Encoded], batch_tokens: int) -> list[list[Encoded]]:
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
    return batches
