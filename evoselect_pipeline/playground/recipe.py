"""Train the playground's tokenizer and tiny base model: about fifteen minutes on one core.

Run again with `python -m evoselect_pipeline.playground.recipe --out DIR`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from random import Random

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evoselect_pipeline.playground.kinds import Draft, Kind, seeded
from evoselect_pipeline.playground.skills import LONG_TEXT, SKILLS, draw_skill, sentence

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIALS = (
    "<pad>",
    "<bos>",
    "<end>",
    "<system>",
    "<user>",
    "<assistant>",
)
VOCABULARY = 1024
# One digit, a word, punctuation with the space after it, one white space.
PIECES = r"\d|[^\W\d]+|[^\w\s]+ ?|\s"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
BATCH = 64
MICRO_BATCH = 32
CHUNK = 50
LONG_EVERY = 25
LONG_BATCH = 8
MUON_LR = 0.02
ADAM_LR = 3e-3
WARMUP = 50
# The prompts' own words teach copying and counting early; the answers are what matters.
PROMPT_WEIGHT = 0.2
CHECKED_ROWS = 40
MAX_NEW_TOKENS = 48


def train_tokenizer(rng: Random, num_texts: int = 20_000) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with one token per digit, so that arithmetic is by place value."""
    tokenizer = Tokenizer(models.BPE())
    # A word is the same tokens at the start of an answer as inside a sentence: the space before
    # it is a piece of its own. Copying, most of what so small a model can do, depends on it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    drafts = (draw_skill(rng)[1] for _ in range(num_texts))
    skill_texts = (f"{draft.prompt}\n{draft.answer}" for draft in drafts)
    # Plain sentences keep the merges useful for ordinary English, not for the skills alone.
    prose = (sentence(rng) for _ in range(num_texts // 4))
    tokenizer.train_from_iterator(chain(skill_texts, prose), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Build the untrained Llama: 0.8M parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index(PAD),
        bos_token_id=SPECIALS.index(BOS),
        eos_token_id=SPECIALS.index(END),
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, drafts: Sequence[Draft]) -> list[tuple]:
    """Encode drafts as (ids, length of the prompt), as the chat template renders them."""
    # Plain strings: rendering 200,000 rows through Jinja would take longer than the training.
    prompts = [f"{BOS}{USER}{draft.prompt}{END}{ASSISTANT}" for draft in drafts]
    answers = [f"{draft.answer}{END}" for draft in drafts]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [(p + a, len(p)) for p, a in zip(prompt_ids, answer_ids, strict=True)]


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: Random, num_steps: int
) -> Iterator[list[tuple]]:
    """Yield batches of mixed rows, and now and then a batch of long ones."""
    for step in range(num_steps):
        if step % CHUNK == 0:
            rows = encode(tokenizer, [draw_skill(rng)[1] for _ in range(BATCH * CHUNK)])
        start = step % CHUNK * BATCH
        is_long = step % LONG_EVERY == LONG_EVERY - 1
        if is_long:
            yield encode(tokenizer, [LONG_TEXT.draw(rng) for _ in range(LONG_BATCH)])
        else:
            yield sorted(rows[start : start + BATCH], key=lambda row: len(row[0]))


def summed_loss(model: LlamaForCausalLM, rows: list[tuple]) -> tuple[torch.Tensor, float]:
    """Cross-entropy summed over the rows' tokens, and the part of it that is the answers'."""
    length = max(len(ids) for ids, _ in rows)
    padding = model.config.pad_token_id
    ids_BS = torch.tensor([ids + [padding] * (length - len(ids)) for ids, _ in rows])
    place_S = torch.arange(1, length)
    starts_B1 = torch.tensor([[start] for _, start in rows])
    ends_B1 = torch.tensor([[len(ids)] for ids, _ in rows])
    known_BS = place_S < ends_B1
    answer = (place_S >= starts_B1)[known_BS].float()
    # Padding stands on the right, so the causal mask alone keeps it out of sight.
    hidden = model.model(input_ids=ids_BS, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[known_BS])
    losses = torch.nn.functional.cross_entropy(logits, ids_BS[:, 1:][known_BS], reduction="none")
    weights = PROMPT_WEIGHT + (1 - PROMPT_WEIGHT) * answer
    return (losses * weights).sum(), float((losses.detach() * answer).sum())


def backward(model: LlamaForCausalLM, batch: list[tuple]) -> float:
    """Accumulate a batch's gradient; return the mean loss of its answers' tokens."""
    num_answer_tokens = sum(len(ids) - start for ids, start in batch)
    answer_loss = 0.0
    for start in range(0, len(batch), MICRO_BATCH):
        loss, of_answers = summed_loss(model, batch[start : start + MICRO_BATCH])
        (loss / num_answer_tokens).backward()
        answer_loss += of_answers / num_answer_tokens
    return answer_loss


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, where it learns in far fewer steps; AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
    num_steps: int,
    console: Console,
) -> float:
    """Train with linear warm-up and linear decay; return the mean answer loss of the end."""
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / num_steps)
        )
        for optimizer in optimizers
    ]
    recent: deque[float] = deque(maxlen=50)
    columns = (
        TextColumn("training, loss {task.fields[loss]:.3f}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("train", total=num_steps, loss=float("nan"))
        for batch in batches(tokenizer, rng, num_steps):
            model.zero_grad()
            recent.append(backward(model, batch))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for step in (*optimizers, *schedules):
                step.step()
            progress.update(bar, advance=1, loss=sum(recent) / len(recent))
    return sum(recent) / len(recent)


@torch.no_grad()
def kind_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: Kind, rng: Random
) -> float:
    """Exact-match accuracy of greedy answers on fresh rows of one kind."""
    drafts = [kind.draw(rng) for _ in range(CHECKED_ROWS)]
    prompts = [f"{BOS}{USER}{draft.prompt}{END}{ASSISTANT}" for draft in drafts]
    inputs = tokenizer(
        prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    output = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
    )
    answers = tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = sum(a == draft.answer for a, draft in zip(answers, drafts, strict=True))
    return right / len(drafts)


def train_base_model(out: Path, num_steps: int, seed: int, console: Console) -> dict:
    """Train tokenizer and model, write them to `out`, and report how they turned out."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seeded("tokenizer", seed))
    # Saved before its first use: the file would else keep the padding of the last call.
    tokenizer.save_pretrained(out)
    model = make_model()
    loss = train(model, tokenizer, seeded("pretraining", seed), num_steps, console)
    model.eval()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=SPECIALS.index(BOS),
        eos_token_id=SPECIALS.index(END),
        pad_token_id=SPECIALS.index(PAD),
    )
    rng = seeded("skill check", seed)
    accuracy = {k.name: kind_accuracy(model, tokenizer, k, rng) for k in (*SKILLS, LONG_TEXT)}
    report = {
        "num_parameters": model.num_parameters(),
        "num_steps": num_steps,
        "seed": seed,
        "loss": round(loss, 4),
        "mean_skill_accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
        "skill_accuracy": accuracy,
        "seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "training_report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    """Read the command line, train, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of 64 rows")
    parser.add_argument("--threads", type=int, default=1, help="the shipped model used one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(stderr=True)
    report = train_base_model(arguments.out, arguments.steps, arguments.seed, console)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
