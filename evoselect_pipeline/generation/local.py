"""Rows from a causal LM of transformers on this machine, answered in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from evoselect_pipeline.config import ModelSettings
from evoselect_pipeline.config_rows import ModelSource
from evoselect_pipeline.core.encoding import ChatTokenizer
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.generation.questions import Question, Questions
from evoselect_pipeline.generation.requests import checked_template
from evoselect_pipeline.progress import progress
from evoselect_pipeline.stores.answer_log import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocalModel:
    """A generator whose rows a model on this machine writes."""

    heeds_weights: ClassVar[bool] = True
    source: ModelSource

    def generate(self, assignment: Assignment) -> Generated:
        """Have a round's rows written; what the log file holds already is not asked for again.

        Raises
        ------
        ConfigError
            If the model cannot be loaded, or a request leaves it no room for an answer.
        """
        questions = Questions(self.source, assignment, self._model_id())
        if batch := self._next_batch(questions):
            writer = _Writer(self.source)
            while batch:
                questions.take(writer.answers(batch))
                num_done = len(questions) - len(questions.open_requests())
                progress("requests to the generator", num_done, len(questions))
                batch = self._next_batch(questions)
        return questions.generated()

    def fingerprint(self, round_number: int) -> str:
        """Hash of what is asked, and of the model; a bad template is refused."""
        # A template's words count, not its path.
        settings = self.source.model_dump(mode="json", exclude={"template"})
        return digest(settings, self._model_id(), checked_template(self.source))

    def _model_id(self) -> str:
        """What identifies the model: its files, and the template in which it sees words."""
        from evoselect_pipeline.training.models import base_fingerprint

        settings = _settings(self.source)
        return digest(base_fingerprint(settings), str(_load_tokenizer(settings).chat_template))

    def _next_batch(self, questions: Questions) -> list[Question]:
        """The questions to answer next: first attempts first, of these the longest.

        The log decides, so that a killed round goes on with the batch that it was at; and what is
        too long for the model or its memory shows at once.
        """
        asked = [questions.next_question(request) for request in questions.open_requests()]
        asked.sort(key=lambda question: (question.attempt, -question.num_characters))
        return asked[: self.source.batch_size]


class _Writer:
    """A loaded model that answers questions; the line's settings alone say how it samples."""

    def __init__(self, source: ModelSource):
        from transformers import GenerationConfig

        from evoselect_pipeline.training.models import load_base

        self.source, settings = source, _settings(source)
        self.tokenizer = _load_tokenizer(settings)
        self.model = load_base(settings).eval()
        own: Any = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        stops = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        self.stop_ids = sorted({int(stop) for stop in stops if stop is not None})
        self.chat = ChatTokenizer(self.tokenizer, self.stop_ids)
        pad: Any = self.tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else next(iter(self.stop_ids), 0)
        self.model.generation_config = GenerationConfig(
            eos_token_id=self.stop_ids or None, pad_token_id=self.pad_id
        )

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions together; the same ones together are answered alike."""
        import torch

        prompts = [self._encode(question) for question in questions]
        length = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (length - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(int(digest([q.seed for q in questions])[:8], 16))
            output = self.model.generate(  # type: ignore[operator]
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=min(self.source.max_tokens, self._room(length)),
                **self._sampling(),
            )
        return [
            self._as_answer(question, len(prompt), new)
            for question, prompt, new in zip(
                questions, prompts, output[:, length:].tolist(), strict=True
            )
        ]

    def _sampling(self) -> dict[str, Any]:
        if self.source.temperature == 0:
            return {"do_sample": False}
        settings = {"temperature": self.source.temperature, "top_p": self.source.top_p}
        return {"do_sample": True, "top_k": 0, **settings}

    def _as_answer(self, question: Question, num_prompt: int, new: list[int]) -> Answer:
        stop = next((place for place, token in enumerate(new) if token in self.stop_ids), None)
        return Answer(
            request=question.request,
            attempt=question.attempt,
            text=str(self.tokenizer.decode(new[:stop], skip_special_tokens=True)),
            ended="length" if stop is None else "stop",
            prompt_tokens=num_prompt,
            completion_tokens=len(new) if stop is None else stop + 1,
            estimated=False,
            cost=0.0,
        )

    def _encode(self, question: Question) -> list[int]:
        """Token ids of a conversation, or of the request alone where that leaves more room."""
        ids = self._ids_of(question.messages)
        if len(question.messages) > 1 and self._room(len(ids)) < self.source.max_tokens:
            ids = self._ids_of(question.messages[:1])
        if self._room(len(ids)) < 1:
            raise ConfigError(
                f"a request to {self.source.model!r} is {len(ids)} tokens long, which leaves no"
                f" room for an answer; show fewer rows (generator.num_examples), or take a model"
                " with a longer context"
            )
        return ids

    def _ids_of(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """What others wrote stands in a request, and must end no turn of it."""
        if self.tokenizer.chat_template:
            whole = self.chat.render(messages, add_generation_prompt=True)
            return self.chat.tokenize([whole])[0]
        words = self.chat.as_text("\n\n".join(m["content"] for m in messages))
        return self.chat.tokenize([words], add_special_tokens=True)[0]

    def _room(self, num_prompt: int) -> int:
        """Tokens that the context leaves for an answer."""
        context = getattr(self.model.config, "max_position_embeddings", None)
        return context - num_prompt if context else self.source.max_tokens


def _settings(source: ModelSource) -> ModelSettings:
    return ModelSettings(name=source.model, revision=source.revision, dtype=source.dtype)


def _load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from evoselect_pipeline.training.model_files import loading, model_path

    with loading("tokenizer", settings):
        return AutoTokenizer.from_pretrained(
            model_path(settings.name), revision=settings.revision, trust_remote_code=False
        )
