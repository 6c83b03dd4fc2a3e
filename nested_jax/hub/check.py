"""``export --check``: what was written, read again, is the model and the tokenizer of the run.

Always: the tensors, bit by bit where the layout allows it; the logits, against numpy
(`hub/oracle.py`); the greedy text; the ids, through `tokenizers`. Where transformers and torch are
installed, what they make of the folder too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.config import ModelConfig
from nested_jax.data.tokenizers.byte_bpe import import_library
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.hub.layouts import layout_of
from nested_jax.hub.oracle import oracle_logits
from nested_jax.hub.tensors import read_folder
from nested_jax.hub.tokenizer_files import JSON
from nested_jax.models.decode import Sampling, generate
from nested_jax.models.lm import build_model
from nested_jax.types import PyTree

LOGITS = 1e-4  # most that logits may differ, relative to their spread
GREEDY = 32  # tokens of greedy text
ROWS = 2
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs; don't they?\n\n  def f(x):\n\treturn x ** 2\n",
    "Naïve café, 日本語, 12345.678 = 9 * 6 + ½…   \n",
    "User: What is 7 times 8?\nAssistant: The answer is",
)


Logits = Callable[[np.ndarray], np.ndarray]  # tokens [B, T] to [B, T, S]


class Line(NamedTuple):
    """One comparison: what, whether it holds (None: it could not be made), and by how much."""

    what: str
    holds: bool | None
    said: str


@dataclass(frozen=True)
class Exported:
    """A folder that was written, and what it was written from."""

    folder: Path
    params: PyTree
    cfg: ModelConfig
    tokenizer: Tokenizer | None
    symbols: int  # ids from this one on stand for nothing
    never: tuple[int, ...] = ()  # control tokens, which are not written


def check(written: Exported) -> list[Line]:
    """Return one line for each comparison; ``holds`` is False where folder and run differ."""
    tensors, config = read_folder(written.folder)
    cfg = replace(written.cfg, compute_dtype="float32", attention="xla")
    tokens_BT = _tokens(written, cfg)
    with jax.default_matmul_precision("highest"):
        ours = _logits(written.params, cfg, tokens_BT)
        text_T = _greedy(written, cfg, tokens_BT[:1])
    oracle = partial(oracle_logits, tensors, config)
    lines = [
        _compare_tensors(written.params, *layout_of(config).read(tensors, config)),
        _compare_logits("numpy", oracle(tokens_BT), ours),
        _compare_greedy("numpy", oracle, text_T, tokens_BT.shape[1], written),
    ]
    lines += _compare_ids(written)
    return lines + list(_transformers(written, tokens_BT, ours, text_T))


def _tokens(written: Exported, cfg: ModelConfig) -> np.ndarray:
    """Return two rows of tokens: of the sample texts, or drawn."""
    length = min(40, max(1, cfg.max_len - GREEDY))
    rows = np.random.default_rng(0).integers(0, written.symbols, (ROWS, length))
    for row, text in zip(rows, TEXTS, strict=False):
        ids = written.tokenizer.encode(text)[:length] if written.tokenizer else []
        row[: len(ids)] = ids
    return rows.astype(np.int32)


def _logits(params: PyTree, cfg: ModelConfig, tokens_BT: np.ndarray) -> np.ndarray:
    model = build_model(cfg)

    def read(params: PyTree, tokens_BT: Any) -> Any:
        state = model.init_state(params, ROWS, capacity=tokens_BT.shape[1])
        return model.apply(params, state, tokens_BT, start="fresh")[1]

    return np.asarray(jax.jit(read)(params, jnp.asarray(tokens_BT)))


def _greedy(written: Exported, cfg: ModelConfig, prompt_BT: np.ndarray) -> np.ndarray:
    """Return a prompt and its greedy text, token by token, [T]."""
    count = min(GREEDY, cfg.max_len - prompt_BT.shape[1])
    how, key = Sampling(0.0, symbols=written.symbols, never=written.never), jax.random.key(0)
    steps = generate(build_model(cfg), written.params, prompt_BT, count, key, how)
    return np.concatenate([prompt_BT[0], *steps])


def _compare_tensors(params: PyTree, again: PyTree, cfg: ModelConfig) -> Line:
    """Llama's table has our factor in it, so that its last bit may differ."""
    bits, worst, where = cfg.kind.gpt2, 0.0, ""
    if "head" in again and "head" not in params:
        params = {**params, "head": params["embed"]}
    got, want = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (again, params))
    if got.keys() != want.keys():
        return Line("tensors", False, "other parameters come back")
    for path, x in want.items():
        error = float(np.abs(np.asarray(got[path]) - np.asarray(x)).max())
        scale = float(np.abs(np.asarray(x)).max()) or 1.0
        if error / scale >= worst:
            worst, where = error / scale, jax.tree_util.keystr(path)
    holds = worst == 0 if bits else worst <= 1e-6
    return Line("tensors", holds, f"{len(want)} read back, largest difference {worst:.1e} {where}")


def _compare_logits(name: str, theirs: np.ndarray, ours: np.ndarray) -> Line:
    off = float(np.abs(theirs - ours).max() / np.std(theirs))
    said = f"largest difference {off:.1e} of their spread, allowed {LOGITS:.0e}"
    return Line(f"logits, {name}", bool(off <= LOGITS), said)


def _compare_greedy(
    name: str, logits: Logits, text_T: np.ndarray, start: int, written: Exported
) -> Line:
    """Each token is the likeliest of those that may be written, or equal to it in rounding."""
    logits_TS = logits(text_T[None, :-1])[0, start - 1 :]
    spread, chosen = logits_TS.std(), text_T[start:]
    logits_TS = logits_TS[:, : written.symbols].copy()
    logits_TS[:, list(written.never)] = -np.inf
    short = logits_TS.max(-1) - logits_TS[np.arange(len(chosen)), chosen]
    wrong = int((short > LOGITS * spread).sum())
    return Line(f"greedy text, {name}", wrong == 0, f"{wrong} of {len(chosen)} tokens differ")


def _compare_ids(written: Exported) -> Iterator[Line]:
    if written.tokenizer is None:
        return
    file = written.folder / JSON
    if not file.is_file():
        yield Line("tokenizer", None, "a vocabulary of characters has no form of Hugging Face")
        return
    try:
        read = import_library().Tokenizer.from_file(str(file))
    except ValueError as error:
        yield Line("tokenizer", None, str(error))
        return
    encode = lambda text: read.encode(text, add_special_tokens=False).ids  # noqa: E731
    yield _same_ids("tokenizer.json", written.tokenizer, encode, read.decode)


def _same_ids(name: str, ours: Tokenizer, encode: Any, decode: Any) -> Line:
    wrong = [text for text in TEXTS if encode(text) != ours.encode(text)]
    lost = [text for text in TEXTS if decode(ours.encode(text)) != text]
    said = f"{len(TEXTS)} texts: {len(wrong)} with other ids, {len(lost)} not given back"
    return Line(name, not wrong and not lost, said)


# --- transformers --------------------------------------------------------------------------------


def _transformers(
    written: Exported, tokens_BT: np.ndarray, ours: np.ndarray, text_T: np.ndarray
) -> Iterator[Line]:
    try:
        import torch
        import transformers
    except ImportError as error:
        yield Line("transformers", None, f"not installed ({error.name})")
        return
    with contextlib.suppress(AttributeError):
        transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(written.folder)
    model = model.to(torch.float32).eval()

    def logits(tokens_BT: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(tokens_BT.astype(np.int64))).logits.numpy()

    start = tokens_BT.shape[1]
    yield _compare_logits("transformers", logits(tokens_BT), ours)
    yield _compare_greedy("transformers", logits, text_T, start, written)
    if written.tokenizer is None:
        return
    yield _generated(written, model, torch, text_T, start)
    if (written.folder / JSON).is_file():
        loaded = transformers.AutoTokenizer.from_pretrained(written.folder)
        encode = partial(loaded.encode, add_special_tokens=False)
        yield _same_ids("AutoTokenizer", written.tokenizer, encode, loaded.decode)
        fits = len(loaded) <= written.cfg.vocab_size
        yield Line("AutoTokenizer, size", fits, f"{len(loaded)} of {written.cfg.vocab_size} ids")


def _generated(written: Exported, model: Any, torch: Any, text_T: np.ndarray, start: int) -> Line:
    """Their `generate`, greedy, writes our text, and ends where a text ends."""
    assert written.tokenizer is not None
    prompt = torch.tensor(text_T[None, :start].astype(np.int64))
    ends = np.flatnonzero(text_T[start:] == written.tokenizer.eos_id)
    stop = start + int(ends[0]) + 1 if len(ends) else len(text_T)
    with torch.no_grad():
        got = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(text_T) - start,
            do_sample=False,
        )[0].numpy()
    same = np.array_equal(got, text_T[:stop])
    said = f"{len(got) - start} tokens, {'equal' if same else 'different'}"
    return Line("generate()", same, said)
