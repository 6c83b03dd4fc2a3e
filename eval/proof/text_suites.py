"""The suites of `python -m eval proof` on text: data only, as in suites.py."""

from __future__ import annotations

from typing import Any

from eval.proof.plan import Budget, Case, Model, Suite

REAL_TEXT = "configs/real_text.py"
# The one write that is not NL's: what is erased has a rate of its own, and values are the targets
# (NL Eq. 79-82) instead of M(v).
ERASE_GATE = ("model.memory.erase_gate=True", "model.memory.targets=value")


def text(size: str, *overrides: str, **own: Any) -> tuple[Case, ...]:
    return (Case("real text", REAL_TEXT, size, overrides, **own),)


# --- real text -----------------------------------------------------------------------------------

ATTENTION = ("hope_attention", "hope_attention, writes off", "transformer")
FULL = "transformer, full attention"
FAR = (128, 512, 2048, 8192)  # tokens between two readings of a passage
HOPES = ("hope", "hope, erase gate", "hope, memories frozen", "hope, writes off")
TEXT = Suite(
    title="Writes on real text",
    models={
        "transformer": Model("model=transformer", note="the same window of attention"),
        FULL: Model("model=transformer,window=0", ("model.max_len=8704",)),
        "gated_deltanet": Model("model=gated_deltanet"),
        "titans_lmm": Model("model=titans_lmm"),
        "hope_hybrid": Model("model=hope_hybrid"),
        "hope_attention": Model("model=hope_attention", note="one fast MLP, in the last block"),
        "hope_attention, gradient stopped": Model("model=hope_attention,meta=stop"),
        "hope_attention, writes off": Model("model=hope_attention,writes=off"),
        "hope": Model("model=hope", note="a fast MLP in the last block beside its memories"),
        "hope, erase gate": Model(
            "model=hope", ERASE_GATE, "erases at a rate of its own, written with values"
        ),
        "hope, memories frozen": Model("model=hope,frozen=True", note="the CMS alone is written"),
        "hope, writes off": Model(
            "model=hope,writes=off,frozen=True", note="neither CMS nor memories are written"
        ),
    },
    budgets={
        "quick": Budget(text("text,rows=16"), (*ATTENTION, *HOPES), 250, 4, (3e-3,), (0, 1, 2)),
        "default": Budget(
            text("text"),
            (*ATTENTION, FULL, "hope_attention, gradient stopped", *HOPES),
            1500,
            4,
            (3e-3,),
            (0, 1, 2),
        ),
        "medium": Budget(
            text(
                "medium",
                "train.eval_every=183",
                f"train.eval_tasks=('repeat:{','.join(map(str, FAR))}',)",
            ),
            (
                "transformer",
                FULL,
                "gated_deltanet",
                "titans_lmm",
                "hope_attention",
                "hope",
                "hope, memories frozen",
                "hope_hybrid",
            ),
            1830,  # of 16,384 tokens: 30 M
            8,
            (1e-3, 3e-3),
            (0, 1, 2),
            (
                ("repeat", ("--memorize", "--distances", ",".join(map(str, FAR)))),
                ("passkey", ("--memorize", "--context-lengths", "512,1024,2048")),
                ("books", ("--memorize", "--segments", "run")),
            ),
        ),
        "full": Budget(
            text("text,seq=4096", "model.dim=512", "model.layers=8", "model.mlp_hidden=1024"),
            (*ATTENTION, FULL, *HOPES),
            10_000,
            32,
            (1e-3, 3e-3),
            (0, 1, 2),
        ),
    },
    published=None,
    measure="position",
    reference="hope_attention",
)

# --- a passage again ------------------------------------------------------------------------------

# The experiment of the README without its evaluator: the task is run afterwards.
SMOKE = Case("source code", "configs/pilot.py", "smoke", ("train.eval_tasks=()",))
OFF = ("teach.mode=off",)
# A setting that is not better than `hope, memories frozen` by more than 0.003 bits per byte in seed
# 0 is dropped; the others run with seeds 1 and 2, beside frozen memories trained in the same way.
VALUES = ("model.memory.targets=value",)
FASTER = ("optim.vector_learning_rate=0.03",)
SPREAD = "model.memory.keep_init=(0.957,0.9973,0.99983,0.99996)"  # 16, 256, 4,096, 16,384 tokens
SEARCH = Suite(
    title="The setting in which the memories of hope pay",
    models={
        "hope, memories frozen": Model("model=hope,frozen=True", note="the CMS alone is written"),
        "values": Model("model=hope", VALUES, "written with values, as in all that follow"),
        "start beside": Model("model=hope", (*VALUES, "model.memory.beside=True")),
        "half-lives from 16 to 16K": Model("model=hope", (*VALUES, SPREAD)),
        "rates at 10 times the learning rate": Model(
            "model=hope", (*VALUES, *FASTER), "norms and gates too"
        ),
        "memories frozen, rates at 10 times the learning rate": Model(
            "model=hope,frozen=True", FASTER, "the pair of the line before"
        ),
        "start beside, spread, own rate": Model(
            "model=hope",
            (*VALUES, "model.memory.beside=True", SPREAD, *FASTER),
        ),
        "a window beside": Model("model=hope_hybrid", note="attention of 64 tokens, Titans memory"),
        "a window beside, memories frozen": Model("model=hope_hybrid,frozen=True"),
    },
    budgets={},
    published=None,
    measure="position",
    reference="hope, memories frozen",
)
SEARCH = SEARCH._replace(
    budgets={"quick": Budget(text("text,rows=16"), tuple(SEARCH.models), 250, 4, (3e-3,), (0,))}
)

REPEAT = Suite(
    title="A passage again",
    models={
        "hope_attention": Model("block=hope_attention", note="two CMS levels in the last block"),
        "hope": Model("block=hope", note="its memories, and the same CMS"),
        "gated_deltanet": Model("block=gated_deltanet", OFF),
        "titans_lmm": Model("block=titans_lmm", OFF),
        "transformer": Model("block=transformer,window=0", OFF, "full attention"),
        "hope_attention, trained without writes": Model("block=hope_attention", OFF),
    },
    budgets={},
    published=None,
    measure="repeat",
    reference="hope_attention",
)
REPEAT = REPEAT._replace(
    budgets={
        "quick": Budget(
            (SMOKE,),
            tuple(REPEAT.models),
            120,
            8,
            (4e-3,),
            (0, 1, 2, 3, 4),
            (("repeat", ("--memorize", "--segments", "run")),),
        )
    }
)
