"""FineWeb-Edu, sample-10BT: the text of the domain-token experiment at full size.

    python -m nested_jax.data shard --manifest configs/data/fineweb_edu.py --download raw \
        --tokenizer-path TOKENIZER --output-dir shards/baseline --target-tokens 9900000000 \
        --shard-size 100000000 --held-out 0.005 --workers 16

9,672,101 documents in Parquet files, about 28 GB, which ``--download`` fetches once. An argument is
a folder that has them already: ``configs/data/fineweb_edu.py:FOLDER``, without ``--download``.
"""

from __future__ import annotations

from typing import Any


def get_manifest(arg: str | None = None) -> dict[str, Any]:
    source = {
        "name": "fineweb_edu",
        "key": "EDU",
        "dataset": arg or "hf:HuggingFaceFW/fineweb-edu",
        "subset": "" if arg else "sample-10BT",
        "rules": "none",  # it is filtered already
        "license": "ODC-BY",
        "url": "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
    }
    return {"name": "fineweb_edu", "sources": [source]}
