"""Conversations: templates, masks by place, rows of whole examples, lines that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nested_jax.config import DataConfig
from nested_jax.config.run import ChatConfig
from nested_jax.data.chat.store import chat_store
from nested_jax.data.chat.templates import TEMPLATES, Message, messages_of
from nested_jax.data.held_out import target_bytes, valid_batches
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.packing import ExampleSource, PackedSource, packed
from nested_jax.data.pipeline import make_train_iterator, prepare
from nested_jax.data.prepare.conversations import write_conversations
from nested_jax.data.prepare.products import FACTS
from nested_jax.data.shards import TokenStore
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

TURNS = [
    Message("user", "6 times 9?"),
    Message("assistant", "It is 54."),
    Message("user", "thanks"),
]


@pytest.fixture(scope="module")
def symbolic() -> Tokenizer:
    texts = [f"User: what is {i} * {i + 1}\nAssistant: it is {i * i + i}, so\n" for i in range(300)]
    return train_tokenizer(texts, 400, symbols=FACTS, hard_vocab_limit=False)


@pytest.fixture(scope="module")
def model(symbolic: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(symbolic.model)
    return path


def write(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def problems(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"what is {i % 9 + 1} times {i}?", "answer": f"{'so ' * (i % 13)}it is {i}"}
        for i in range(count)
    ]


def stored(folder: Path, rows: list[Any], model: Path, **fields: Any) -> TokenStore:
    write(folder / "data/valid.jsonl", rows[:1])
    write(folder / "data/train.jsonl", rows)
    cfg = ChatConfig(tokenizer=str(model), **fields)
    return chat_store(folder / "cache", folder / "data", cfg, lambda _: None)


def read(store: TokenStore) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return tokens and masks of the training examples."""
    (shard,) = store.select("train")
    ids = np.fromfile(store.root / shard.file, store.dtype)
    mask = np.fromfile(store.root / shard.named(".mask"), np.uint8)
    ends = np.fromfile(store.root / shard.offsets_file, np.int64)[1:-1]
    return list(zip(np.split(ids, ends), np.split(mask, ends), strict=True))


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("turns", "User: 6 times 9?\nAssistant:[ It is 54.]\nUser: thanks"),
        ("question", "Question: 6 times 9?\nAnswer:[ It is 54.]\nQuestion: thanks"),
        (
            "chatml",
            "<|im_start|>user\n6 times 9?<|im_end|>\n<|im_start|>assistant"
            "[\nIt is 54.<|im_end|>]\n<|im_start|>user\nthanks<|im_end|>",
        ),
    ],
)
def test_templates(template: str, want: str) -> None:
    parts = TEMPLATES[template].parts(TURNS)
    assert "".join(f"[{p.text}]" if p.answer else p.text for p in parts) == want
    assert TEMPLATES[template].prompt("6 times 9?") == parts[0].text


def test_instructions_come_first() -> None:
    row = {"messages": [{"role": r, "content": r} for r in ("user", "system", "assistant")]}
    assert [m.role for m in messages_of(row, "x:1")] == ["system", "user", "assistant"]


@pytest.mark.parametrize("eos", ["end", "every_turn"])
def test_masks_are_by_place(tmp_path: Path, model: Path, symbolic: Tokenizer, eos: str) -> None:
    """Every token of an answer, and the EOS that ends it, is learned; nothing else is."""
    long = {"messages": [m._asdict() for m in [*TURNS, Message("assistant", "welcome")]]}
    open_ = {"messages": [m._asdict() for m in TURNS]}
    found = read(stored(tmp_path, [long, open_], model, eos=eos))
    for (ids, mask), last in zip(found, (True, False), strict=True):
        learned = [symbolic.decode(part) for part in runs(ids, mask)]
        want = [" It is 54."] + ([" welcome"] if last else [])
        assert learned == want
        ends = np.flatnonzero(ids == symbolic.eos_id)
        assert len(ends) == 1 + (eos == "every_turn")
        assert [mask[at] for at in ends] == [1] * (len(ends) - 1) + [int(last)]
        assert ends[-1] == len(ids) - 1
        assert ids[mask == 0].tolist().count(symbolic.eos_id) == (0 if last else 1)


def runs(ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Return the runs of learned tokens."""
    cuts = np.flatnonzero(np.diff(mask)) + 1
    return [
        part for part, own in zip(np.split(ids, cuts), np.split(mask, cuts), strict=True) if own[0]
    ]


def test_a_prompt_has_the_tokens_of_training(
    tmp_path: Path, model: Path, symbolic: Tokenizer
) -> None:
    rows = problems(20)
    for row, (ids, mask) in zip(rows, read(stored(tmp_path, rows, model)), strict=True):
        prompt = symbolic.encode(TEMPLATES["turns"].prompt(row["question"]))
        assert ids[: len(prompt)].tolist() == prompt
        assert mask.tolist() == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_domain_tokens_in_answers_only(tmp_path: Path, model: Path, symbolic: Tokenizer) -> None:
    row = {"question": "what is 6*9?", "answer": "6 * 9 = <<6*9=54>>54"}
    fact = symbolic.id_of("<MUL_6_9_54>")
    counts = {}
    for how in ("keep", "strip"):
        fields = {"condition": "mul_tokens", "annotations": how}
        store = stored(tmp_path / how, [row], model, **fields)
        ((ids, mask),) = read(store)
        counts[how] = int((ids == fact).sum())
        assert mask[ids == fact].all()
        assert "what is 6*9?" in symbolic.decode(ids)
        answer = row["answer"] if how == "keep" else "6 * 9 = 54"
        size = len(f"User: {row['question']}\nAssistant: {answer}".encode())
        assert store.select("train")[0].bytes == size
    assert counts == {"keep": 2, "strip": 1}


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seq_len", "align"), [(64, 1), (64, 16), (24, 8)])
def test_rows_hold_whole_examples(tmp_path: Path, model: Path, seq_len: int, align: int) -> None:
    store = stored(tmp_path, problems(150), model)
    want = sorted(tuple(ids[:seq_len].tolist()) for ids, _ in read(store))
    shards = store.select("train")
    source = ExampleSource(store, shards, seq_len=seq_len, align=align, loss="assistant")
    got, used = [], 0
    for i in range(len(source)):
        row = source[i]
        for number in range(1, row["segments_BT"].max() + 1):
            places = np.flatnonzero(row["segments_BT"] == number)
            assert places[0] % align == 0
            assert (np.diff(places) == 1).all()
            got.append(tuple(row["tokens_BT"][places].tolist()))
            used += len(places)
    assert sorted(got) == want
    if align == 1:
        assert used > 0.85 * len(source) * seq_len, "rows are well filled"


def test_weights_of_a_row(tmp_path: Path, model: Path) -> None:
    """Packed rows have the weights and targets of each example alone."""
    store = stored(tmp_path, problems(40), model)
    shards = store.select("train")
    for loss in ("assistant", "all"):
        source = ExampleSource(store, shards, seq_len=64, align=1, loss=loss)
        alone = {tuple(ids[:64].tolist()): mask for ids, mask in read(store)}
        for i in range(len(source)):
            row = source[i]
            for number in range(1, row["segments_BT"].max() + 1):
                at = np.flatnonzero(row["segments_BT"] == number)
                ids = row["tokens_BT"][at]
                mask = alone[tuple(ids.tolist())] if loss == "assistant" else np.ones(999)
                known = min(len(at), len(mask) - 1) if loss == "assistant" else len(at) - 1
                assert (row["targets_BT"][at[: len(at) - 1]] == ids[1:]).all()
                assert (row["weights_BT"][at[:known]] == mask[1 : known + 1]).all()
        assert (source[0]["weights_BT"][source[0]["segments_BT"] == 0] == 0).all()


def test_packing_is_fixed_and_loses_nothing() -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 1000)
    rows = packed(sizes.tobytes(), 64, 1)
    assert sorted(d for row in rows for d in row) == list(range(1000))
    assert all(sum(min(int(sizes[d]), 64) for d in row) <= 64 for row in rows)
    packed.cache_clear()
    assert packed(sizes.tobytes(), 64, 1) == rows


def test_the_pipeline_reads_them(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "chat.jsonl", problems(400))
    chat = {"tokenizer": str(model), "condition": "mul_tokens"}
    fields = {
        "mode": "examples",
        "seq_len": 64,
        "align": 1,
        "valid_rows": 99,
        "chat": ChatConfig(**chat),
    }
    cfg = DataConfig(str(tmp_path / "chat.jsonl"), cache_dir=str(tmp_path / "cache"), **fields)
    said: list[str] = []
    about = prepare(cfg, said.append)
    assert about.documents["chat"]["valid"] > 0
    assert sum(about.documents["chat"].values()) == 400
    assert f"{about.documents['chat']['train']} training examples" in said[-1]
    batch = next(make_train_iterator(cfg, batch_size=4, align=1, seed=0))
    assert batch["tokens_BT"].shape == (4, 64)
    store = chat_store(tmp_path / "cache", tmp_path / "chat.jsonl", cfg.chat, said.append)
    batches = valid_batches(cfg, batch_size=3, align=1)
    shards = store.select("valid")
    assert target_bytes(batches, store.piece_byte_lengths) == sum(s.target_bytes for s in shards)


def test_a_train_file_alone_holds_some_out(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "data/train.jsonl", problems(400))
    write(tmp_path / "data/test.jsonl", problems(30))
    cfg = ChatConfig(tokenizer=str(model))
    store = chat_store(tmp_path / "cache", tmp_path / "data", cfg, lambda _: None)
    sizes = {
        split: sum(s.documents for s in store.select(split)) for split in ("train", "valid", "test")
    }
    assert sizes["train"] + sizes["valid"] == 400
    assert 0 < sizes["valid"] < 30
    assert sizes["test"] == 30


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "fits no template; wants messages, or question and answer, and has text"),
        ({}, "fits no template; .* has nothing"),
        ({"question": "a", "answer": 5}, "answer=5: wants a string"),
        ({"messages": []}, r"messages=\[\]: has no answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, r"messages=\['user'\]: has no answer"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            r"messages\[0\]: role='tool': wants one of system, user",
        ),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]=.*: wants {role, content}"),
        ({"messages": "a"}, "messages='a': wants a list of turns"),
        ([1], "is a JSON list; wants an object"),
    ],
)
def test_a_line_that_fits_no_template_is_named(
    tmp_path: Path, model: Path, row: Any, message: str
) -> None:
    rows = [*problems(3), row]
    with pytest.raises(ValueError, match=rf"train\.jsonl:4: {message}"):
        stored(tmp_path, rows, model)
    assert not list((tmp_path / "cache").glob("chat-*/index.json")), "nothing that passes for whole"


def test_fields_that_do_not_fit(tmp_path: Path, model: Path, store: TokenStore) -> None:
    file = write(tmp_path / "train.jsonl", problems(3))
    with pytest.raises(ValueError, match="mode='rows': wants examples, which are not cut"):
        prepare(DataConfig(str(file), chat=ChatConfig(tokenizer=str(model))))
    with pytest.raises(ValueError, match=r"data\.chat\.tokenizer='': wants the run or the file"):
        prepare(DataConfig(str(file), mode="examples"))
    with pytest.raises(ValueError, match="has no conversation for the valid split, of 3 in all"):
        chat_store(tmp_path / "cache", file, ChatConfig(tokenizer=str(model)), print)
    with pytest.raises(ValueError, match="documents='joined': joined rows learn every token"):
        DataConfig(str(store.root), loss="assistant", documents="joined")
    cfg = DataConfig(str(store.root), loss="assistant", seq_len=64)
    with pytest.raises(ValueError, match=r"loss='assistant': the shards of .* do not say"):
        make_train_iterator(cfg, batch_size=2, align=1, seed=0)


def test_examples_of_ordinary_shards(store: TokenStore) -> None:
    """Without masks the rows of whole documents hold what plain rows hold."""
    shards = store.select("train")
    sources = [kind(store, shards, seq_len=512, align=1) for kind in (ExampleSource, PackedSource)]
    sums = [sum(int(s[i]["weights_BT"].sum()) for i in range(len(s))) for s in sources]
    assert sums[0] == sums[1]


def test_conversations_of_parquet_and_json_lines(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [m._asdict() for m in TURNS]}, {"messages": [TURNS[0]._asdict()]}] * 3
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", rows)
    for name in ("a.parquet", "b.jsonl"):
        said: list[str] = []
        spec = SourceSpec(dataset=str(tmp_path / name), limit=2)
        counts = write_conversations(spec, tmp_path / "out.jsonl", said.append)
        assert counts == {"written": 2, "left_out": 1}
        assert "has no answer" in said[0]
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert lines == [rows[0]] * 2
    write(tmp_path / "c.jsonl", rows[1:2])
    with pytest.raises(ValueError, match="has no conversation"):
        write_conversations(SourceSpec(dataset=str(tmp_path / "c.jsonl")), tmp_path / "d", print)
    assert not (tmp_path / "d").exists()
