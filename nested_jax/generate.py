"""Write text with a checkpoint: ``python -m nested_jax.generate --checkpoint runs/NAME --prompt
"..."``.

    --checkpoint DIR       a workdir, or one of its checkpoints/STEP
    --prompt TEXT          or --prompt-file FILE
    --max-tokens N         tokens to write (default 128); writing stops at the end of a document
    --temperature X --top-k N --top-p X --seed N
    --adapt                go on learning: prompt and output are written into the fast weights
    --state FILE           begin with what `python -m nested_jax.read` has learned
    --reader NAME          whose memory, where the file has several

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from nested_jax.config import Config
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require
from nested_jax.machine import quiet_libraries
from nested_jax.models.decode import Learn, Sampling, generate
from nested_jax.models.lm import LanguageModel, build_model
from nested_jax.models.memories import load_memory, pick
from nested_jax.teach import teach
from nested_jax.train.opened import open_checkpoint
from nested_jax.types import PyTree


def main(arguments: list[str]) -> int:
    flags = parse(arguments)
    quiet_libraries()
    try:
        for piece in write(flags):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt")
    text.add_argument("--prompt-file", type=Path)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapt", action="store_true")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--reader")
    return parser.parse_args(arguments)


def write(flags: argparse.Namespace) -> Iterator[str]:
    """Yield the prompt, then text as it is written."""
    require(flags.max_tokens >= 1, "--max-tokens", flags.max_tokens, "wants at least 1")
    how = Sampling(flags.temperature, flags.top_k, flags.top_p)  # checked before anything is read
    prompt = flags.prompt if flags.prompt_file is None else read_prompt(flags.prompt_file)
    require(prompt != "", "--prompt", prompt, "wants some text")
    given = flags.state is not None or flags.reader is None
    require(given, "--reader", flags.reader, "wants --state, the file that it is of")
    opened = open_checkpoint(flags.checkpoint)
    tokenizer, cfg = opened.text_tokenizer, opened.cfg
    model = build_model(cfg.model)
    learn = learner(model, opened.params, cfg) if flags.adapt else None
    memory = None
    if flags.state is not None:
        memory, about = load_memory(flags.state, model, opened.params, opened.named, "--state")
        memory = pick(memory, about, flags.reader, "--reader")
    tokens = np.asarray([tokenizer.encode(prompt)], np.int32)
    steps = generate(
        model,
        opened.params,
        tokens,
        flags.max_tokens,
        jax.random.key(flags.seed),
        replace(how, symbols=opened.symbols, never=opened.never),
        learn=learn,
        chunk=cfg.teach.chunk,
        memory=memory,
    )
    yield prompt
    yield from decoded(tokenizer, steps)


def read_prompt(file: Path) -> str:
    """Return the text of --prompt-file.

    Raises:
      ValueError: it is not UTF-8.
    """
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file={str(file)!r}: is not UTF-8 ({error})") from error


def decoded(tokenizer: Tokenizer, steps: Iterator[np.ndarray]) -> Iterator[str]:
    """Yield text as soon as it is whole: a character may be made of several byte tokens."""
    tokens: list[int] = []
    shown = 0
    for token_B in steps:
        token = int(token_B[0])
        if token == tokenizer.eos_id:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[shown:]
            shown = len(text)
    yield tokenizer.decode(tokens)[shown:]


def learner(model: LanguageModel, params: PyTree, cfg: Config) -> Learn:
    """Return the jitted write of the fast weights.

    Raises:
      ValueError: the model has no fast weights.
    """
    require(
        model.cfg.fast_layers > 0,
        "--adapt",
        model.cfg.block,
        "the checkpoint's model has no CMS levels that could be written",
    )
    mode = "exact" if cfg.teach.mode == "off" else cfg.teach.mode
    teaching = replace(cfg.teach, mode=mode)
    step = jax.jit(partial(teach, model, cfg=teaching))
    return lambda state, tokens, targets: step(params, state, tokens, targets)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
