"""Three levels over characters: an LSTM moved at every step, MLP levels every 16 and every 256.

    python launch.py --config configs/char_lstm.py                          the embedded text
    python launch.py --config configs/char_lstm.py:source=FOLDER            train.txt and valid.txt
    python launch.py --config configs/char_lstm.py:test                     seconds

Row i of the batch continues row i of the batch before. The LSTM's state lives through the whole
run. The argument is a size (char, test) and fields: see configs/common.py; ``seq=2048`` reads
longer rows. About 1.2 M parameters.

With ``batch=8,steps=3300,lr=3e-3`` and a cosine it takes 44 minutes on one core, and ends at a
held-out perplexity of 3.53 per character of WikiText-2 (docs/proof/char-lstm.md). The 10,000 steps
that stand here have not been run.

    --config.train.carry=none                resets the state every batch
    "--config.model.cms.surprise=()"         no surprise objectives
    "--config.model.cms.surprise=()" --config.model.cms.fast_layers=1 --config.teach.mode=exact
        --config.train.carry=all             levels 2 and 3 have states too: fast weights, written
                                             as they read, that outlive the batch
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="char", sizes=common.SMALL)
    cfg = common.base(size)
    cfg.model.block = "lstm_cms"
    cfg.model.cms = ml_collections.ConfigDict()
    cfg.model.cms.periods = (64, 256)  # tokens between writes, where the levels are written
    cfg.model.cms.fast_layers = 0  # the levels are MLPs
    cfg.model.cms.surprise = (0.05, 0.01)  # weights of the objectives of levels 2 and 3
    cfg.data.tokenizer = "char"
    cfg.data.mode = "stream"  # batch row i reads on where it ended
    cfg.train.carry = "mixers"  # the LSTM's state outlives the batch
    cfg.optim.periods = (1, 16, 256)  # steps between updates of each level
    cfg.optim.schedule = "constant"
    cfg.optim.beta2 = 0.999
    cfg.optim.weight_decay = 0.0  # Adam
    if size == "char":
        _char(cfg)
    return common.finish(cfg, fields)


def _char(cfg: ml_collections.ConfigDict) -> None:
    cfg.model.lstm_hidden = 320  # level 1 moves every step, so it gets most of the parameters
    cfg.model.compute_dtype = "float32"
    cfg.model.remat = "none"
    cfg.model.loss_chunk = 0
    cfg.data.seq_len = 512
    cfg.data.align = 64  # documents start at multiples of it, whether levels are written or not
    cfg.data.valid_rows = 512  # 262,144 characters, as batch_size streams
    cfg.train.batch_size = 64
    cfg.train.steps = 10_000
    cfg.train.eval_every = 500
    cfg.train.save_every = 500
    cfg.train.log_every = 20
    cfg.optim.learning_rate = 3e-4  # of level 1; 3e-4 / 16 and 3e-4 / 256 of levels 2 and 3
    cfg.optim.warmup_steps = 20
