"""What `python -m eval proof` runs: tasks, models, budgets, and the published numbers beside ours.

Data only. A model is the fields that it adds to the argument of the config file; every other field
(data, order, steps, rows per step, learning rates, seeds) is the same for all models of a suite. A
budget is cases, models, steps, rows per step, peak learning rates and seeds.
"""

from __future__ import annotations

from typing import Any

from eval.proof import published
from eval.proof.plan import Budget, Case, Model, Suite
from eval.proof.text_suites import ERASE_GATE, REPEAT, SEARCH, TEXT, text

SYNTHETIC = "configs/synthetic.py"
MODELS = {
    "transformer": Model("model=transformer"),
    "lstm": Model("model=lstm"),
    "deltanet": Model("model=deltanet", note="write rates in (0, 1), as published"),
    "gated_deltanet": Model("model=gated_deltanet", note="write rates in (0, 2)"),
    "titans_lmm": Model("model=titans_lmm"),
    "hope_attention": Model("model=hope_attention", note="CMS levels are read, not written"),
    "hope": Model("model=hope", note="write rates in (0, 2)"),
    "hope, erase gate": Model(
        "model=hope", ERASE_GATE, "erases at a rate of its own, written with values"
    ),
    "hope frozen": Model("model=hope,frozen=True", note="memories are read, never written"),
}
# Every other head begins to add instead of to replace, erasing exactly nothing is in reach, and the
# generators hardly move: a write at the same token is the same write.
ADDERS = (
    *ERASE_GATE,
    "model.memory.erase_init=(1.0, 0.03)",
    "model.memory.erase_stretch=0.1",
    "model.memory.generator_pace=0.001",
)
# A count is back at 0 only if what one symbol added is what another took away, and is seen to be at
# 0 only if the norm after it does not blow up what is left.
EXACT = (*ADDERS, "model.memory.conv=0", "model.norm_eps=0.01")
EXPLAINED = {
    "hope, half adders": Model(
        "model=hope", ADDERS, "an erase gate that starts near 0 in every other head"
    ),
    "hope, exact adders": Model(
        "model=hope",
        EXACT,
        "half adders; a symbol writes the same whatever came before it (no convolution), and norms"
        " leave small answers small (model.norm_eps=0.01)",
    ),
    "deltanet, rates to 2": Model("model=deltanet,rate=2.0", note="negative eigenvalues"),
    "hope, rates to 1": Model(
        "model=hope,rate=1.0",
        ("model.memory.inner_lr=0.5",),
        "no negative eigenvalues",
    ),
}
ALL = tuple(MODELS)

# --- formal languages ---------------------------------------------------------------------------

LANGUAGES = {
    "Parity": "parity",
    "(aa)*": "aa",
    "(abab)*": "abab",
    "a^n b^n": "anbn",
    "a^n b^n c^n": "anbncn",
    "Shuffle-2": "shuffle2",
    "Shuffle-2, nested": "shuffle2_nested",
}


def languages(*names: str, **own: Any) -> tuple[Case, ...]:
    return tuple(Case(name, SYNTHETIC, LANGUAGES[name], **own) for name in names)


# Strings of the trained lengths are soon right by any margin, and with the loss goes what makes
# counts exact. Decay bounds the margins, so that a loss remains.
DECAYED = tuple(
    case._replace(name=f"{case.name}, weight decay 3", overrides=("optim.weight_decay=3.0",))
    for case in languages("a^n b^n c^n", "Shuffle-2", "Shuffle-2, nested")
)

FORMAL = Suite(
    title="Formal languages",
    models={**MODELS, **EXPLAINED},
    budgets={
        "quick": Budget(
            (*languages("Parity", rates=(1e-2, 2e-2)), *languages("(aa)*")),
            ALL,
            600,
            32,
            (1e-2,),
            (0,),
        ),
        "default": Budget(
            (*languages(*LANGUAGES), *DECAYED),
            (*ALL, *EXPLAINED),
            1000,
            32,
            (1e-2, 3e-3, 1e-3),
            (0, 1, 2),
        ),
        "full": Budget(
            languages(*LANGUAGES),
            (*ALL, *EXPLAINED),
            20_000,
            64,
            (3e-4, 1e-3, 3e-3, 1e-2),
            (0, 1, 2, 3, 4),
        ),
    },
    published=published.FORMAL,
    measure="accuracy",
)

# --- counting -------------------------------------------------------------------------------------

# Targets that give a tenth of their mass to all sets alike, for all models: a loss remains however
# right the answers are. The decay of 3 keeps small the weights that would make a count steep.
COUNTED = languages(
    "a^n b^n",
    "a^n b^n c^n",
    "Shuffle-2",
    "Shuffle-2, nested",
    overrides=("train.label_smoothing=0.1", "optim.weight_decay=3.0"),
)
COUNTING = FORMAL._replace(
    title="Counting with smoothed targets",
    budgets={
        "quick": Budget(
            COUNTED[1:2],
            ("transformer", "lstm", "hope", "hope, exact adders", "hope frozen"),
            1000,
            32,
            (1e-2,),
            (0,),
        ),
        "default": FORMAL.budgets["default"]._replace(cases=COUNTED, rates=(1e-2, 3e-3)),
        "full": FORMAL.budgets["full"]._replace(cases=COUNTED),
    },
)

# --- MQAR ----------------------------------------------------------------------------------------

MQAR_SETTINGS = ((64, 4), (128, 8), (256, 16))
HEAD = 64  # one head of 128 learns to recall later than two of 64, if at all


def recall(setting: tuple[int, int], vocab: int) -> str:
    tokens, pairs = setting
    return f"mqar,tokens={tokens},pairs={pairs},vocab={vocab},fill=zero"


def mqar(
    vocab: int,
    widths: tuple[int, ...],
    settings: tuple[tuple[int, int], ...],
    further: int = 0,
    longer: tuple[int, ...] = (),
) -> tuple[Case, ...]:
    """Return a case for each width and setting, with heads of 64.

    With `further` steps a curriculum: the first setting has the budget's steps, and each other goes
    on from the one before it, for `further` steps. Few rows do not teach long ones from nothing.
    The last setting then goes on for so many steps as are in `longer`, scored on all settings.
    """
    every = tuple(recall(setting, vocab) for setting in reversed(settings))
    cases = []
    for width in widths:
        before = ""
        fields = f"width={width}" + (f",heads={width // HEAD}" if width > HEAD else "")
        for setting in settings:
            name, argument = f"{setting} width {width}", f"{recall(setting, vocab)},{fields}"
            own: dict[str, Any] = {"after": before, "steps": further} if before else {}
            cases.append(Case(name, SYNTHETIC, argument, **own))
            before = name if further else ""
        tests, before = (f"data.task.tests={every}",), name
        for count, steps in enumerate(longer, start=1):
            name = f"{settings[-1]} width {width}, longer" + (f" {count}" if count > 1 else "")
            cases.append(Case(name, SYNTHETIC, argument, tests, before, steps))
            before = name
    return tuple(cases)


MQAR = Suite(
    title="Multi-query associative recall",
    models=MODELS,
    budgets={
        "quick": Budget(mqar(128, (64,), MQAR_SETTINGS[:1]), ALL, 900, 32, (1e-2,), (0,)),
        "default": Budget(
            mqar(512, (64, 128), MQAR_SETTINGS, further=300, longer=(1500, 1500)),
            ALL,
            1000,
            32,
            (1e-2, 3e-3),
            (0, 1, 2),
        ),
        "full": Budget(
            mqar(8192, (64, 128), MQAR_SETTINGS),
            ALL,
            12_500,
            512,
            (1e-4, 4.6e-4, 2.2e-3, 1e-2),
            (0, 1, 2),
        ),
    },
    published=published.MQAR,
    measure="accuracy",
)

# --- MAD -----------------------------------------------------------------------------------------

MAD_TASKS = {
    "in-context recall": "in_context_recall",
    "noisy recall": "noisy_recall",
    "fuzzy recall": "fuzzy_recall",
    "selective copying": "selective_copy",
    "compression": "compression",
    "memorization": "memorization",
}
MAD_ROWS = {"memorization": 256}  # the others have 12,800


def mad(width: int = 128) -> tuple[Case, ...]:
    """MAD's baseline settings; two blocks of mixer and SwiGLU are its four layers."""
    return tuple(
        Case(name, SYNTHETIC, f"{task},width={width},rows={MAD_ROWS.get(task, 12_800)}")
        for name, task in MAD_TASKS.items()
    )


MAD = Suite(
    title="MAD",
    models=MODELS,
    budgets={
        "quick": Budget(mad(64), ALL, 400, 32, (5e-3,), (0,)),
        "default": Budget(mad(), ALL, 2000, 64, (3e-3, 1e-3), (0, 1)),
        "full": Budget(mad(), ALL, 20_000, 128, (1e-4, 5e-4, 1e-3), (0, 1, 2)),
    },
    published=published.MAD,
    measure="accuracy",
)


# --- ablation ------------------------------------------------------------------------------------

TEXT_RATE = "model.memory.inner_lr=0.02"  # where the rates start on text, whatever the switch

SWITCHES = {
    "hope": Model("model=hope"),
    "- DGD (gradient descent)": Model(
        "model=hope", ("model.memory.rule=gd", "model.memory.retention=False")
    ),
    "+ momentum": Model("model=hope", ("model.memory.momentum=True",)),
    "- retention": Model("model=hope", ("model.memory.retention=False",)),
    "- adaptive k": Model("model=hope", ("model.memory.adaptive_k=False",)),
    "- adaptive v": Model("model=hope", ("model.memory.adaptive_v=False",)),
    "+ adaptive q": Model("model=hope", ("model.memory.adaptive_q=True",)),
    "targets = values": Model("model=hope", ("model.memory.targets=value",)),
    "+ erase gate": Model("model=hope", ("model.memory.erase_gate=True",)),
    "+ erase gate, targets = values": Model("model=hope", ERASE_GATE),
    "rates to 1": Model("model=hope,rate=1.0", ("model.memory.inner_lr=0.5",), "they start at 0.5"),
    "no convolution": Model("model=hope", ("model.memory.conv=0",)),
    "- CMS writes": Model("model=hope", ("teach.mode=off",), "in the tasks the CMS is an MLP"),
    "frozen": Model("model=hope,frozen=True"),
}
ABLATION = Suite(
    title="Ablation of hope",
    models=SWITCHES,
    budgets={
        "quick": Budget(
            (
                *languages("Parity", steps=600),
                *mqar(128, (64,), MQAR_SETTINGS[:1]),
                *text("text,rows=16", TEXT_RATE, steps=250, batch=4, rates=(3e-3,)),
            ),
            tuple(SWITCHES),
            900,
            32,
            (1e-2,),
            (0,),
        ),
        "default": Budget(
            (
                *languages("Parity", steps=1000),
                *mqar(256, (64,), MQAR_SETTINGS[:1]),
                *text("text", TEXT_RATE, steps=1500, batch=4, rates=(3e-3,)),
            ),
            tuple(SWITCHES),
            1000,
            32,
            (1e-2, 3e-3),
            (0, 1, 2),
        ),
        "full": Budget(
            (
                *languages("Parity", "Shuffle-2"),
                *mqar(512, (64,), MQAR_SETTINGS),
                *text("text,seq=4096", "model.dim=512", "model.layers=8", TEXT_RATE, steps=10_000),
            ),
            tuple(SWITCHES),
            4000,
            64,
            (1e-3, 3e-3, 1e-2),
            (0, 1, 2),
        ),
    },
    published=published.ABLATION,
    measure="accuracy",
)

SUITES = {
    "formal": FORMAL,
    "counting": COUNTING,
    "mqar": MQAR,
    "mad": MAD,
    "ablation": ABLATION,
    "text": TEXT,
    "repeat": REPEAT,
    "search": SEARCH,
}
