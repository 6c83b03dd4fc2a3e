"""The corpora of `python -m nested_jax.data full`: five public data sets of the Hugging Face Hub.

    pip install 'nested-jax[data,hf]'
    python -m nested_jax.data full --out DIR --workers 16

Needs a network, or HF_HUB_OFFLINE=1 and cached copies, or local copies: every field of a source
can be set from the environment, ``RW_DATASET=/data/web/*.parquet RW_LIMIT=0``. The limits below are
300,000 documents; a limit of 0 takes everything.
"""

ENGLISH = {
    "rules": "prose",
    "lang": "en",
    "lang_threshold": 0.85,
    "min_chars": 200,
    "max_chars": 8000,
}

SOURCES = [
    {
        **ENGLISH,
        "name": "web",
        "key": "RW",
        "dataset": "hf:HuggingFaceFW/fineweb",
        "subset": "sample-10BT",
        "limit": 100_000,
        "weight": 0.4,
        "license": "ODC-By 1.0",
    },
    {
        **ENGLISH,
        "name": "encyclopedic",
        "key": "WIKI",
        "dataset": "hf:wikimedia/wikipedia",
        "subset": "20231101.en",
        "limit": 50_000,
        "weight": 0.2,
        "license": "CC BY-SA 3.0",
    },
    {
        **ENGLISH,
        "name": "news",
        "key": "C4",
        "dataset": "hf:allenai/c4",
        "subset": "realnewslike",
        "limit": 50_000,
        "weight": 0.15,
        "license": "ODC-By 1.0",
    },
    {
        **ENGLISH,
        "name": "literary",
        "key": "RPJ",
        "dataset": "hf:emozilla/pg19",
        "max_chars": 0,  # whole books
        "limit": 50_000,
        "weight": 0.15,
        "license": "public domain",
    },
    {
        "name": "code",
        "key": "CODE",
        "dataset": "hf:codeparrot/codeparrot-clean",
        "text_column": "content",
        "rules": "code",
        "lang": "",
        "min_chars": 200,
        "max_chars": 16_000,
        "limit": 50_000,
        "weight": 0.1,
        "license": "as stated by each file",
    },
]


def get_manifest(arg: str | None = None) -> dict:
    """Return the manifest; there is nothing to choose."""
    if arg:
        raise ValueError(f"configs/data/full.py:{arg}: takes no argument")
    return {"name": "full", "sources": [dict(source) for source in SOURCES]}
