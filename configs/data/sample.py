"""The small corpora of `python -m nested_jax.data sample`: what is on the machine.

    python -m nested_jax.data sample                        # the embedded text: no file, no network
    python -m nested_jax.data sample --root ROOT            # five corpora under ROOT/lm

Cost: about a minute for the embedded text, at most five for the five corpora on two CPU cores.
Result: a mixture.json that `launch.py --config.data.source=...` trains on.
"""

# The embedded text: segments of the running Python's standard library.
EMBEDDED = [
    {"name": "prose", "key": "WIKI", "dataset": "stdlib:prose", "weight": 0.1},
    {"name": "library", "key": "CODE", "dataset": "stdlib:library", "weight": 0.5, "rules": "code"},
    {"name": "tests", "dataset": "stdlib:tests", "weight": 0.35, "rules": "code"},
    {"name": "tables", "dataset": "stdlib:tables", "weight": 0.05, "rules": "none"},
]

ENGLISH = {"rules": "prose", "lang": "en", "min_chars": 200}


def get_manifest(root: str | None = None) -> dict:
    """Return the manifest; `root` is a folder with ``lm/NAME/{train,valid,test}.jsonl.gz``."""
    if not root:
        sources = [{**source, "license": "PSF-2.0"} for source in EMBEDDED]
        return {"name": "sample-embedded", "sources": sources}
    return {
        "name": "sample",
        "sources": [
            {
                **ENGLISH,
                "name": "encyclopedic",
                "key": "WIKI",
                "dataset": f"{root}/lm/encyclopedic_wikipedia",
                "limit": 1000,
                "weight": 0.3,
                "license": "CC BY-SA 3.0",
            },
            {
                **ENGLISH,
                "name": "web",
                "key": "RW",
                "dataset": f"{root}/lm/web_gov_techdocs",
                "limit": 2000,
                "weight": 0.2,
                "license": "CC0 / CC BY 4.0",
            },
            {
                **ENGLISH,
                "name": "news",
                "key": "C4",
                # No news text there; articles on health for the public are the nearest to it.
                "dataset": f"{root}/lm/medical_medquad",
                "limit": 1000,
                "weight": 0.1,
                "license": "CC BY 4.0",
            },
            {
                **ENGLISH,
                "name": "literary",
                "key": "RPJ",
                "dataset": f"{root}/lm/literary_novels",
                "limit": 50,
                "weight": 0.2,
                "license": "public domain",
            },
            {
                "name": "code",
                "key": "CODE",
                "dataset": f"{root}/lm/code",
                "rules": "code",
                "min_chars": 200,
                "limit": 1000,
                "weight": 0.2,
                "license": "PSF / MIT / Apache-2.0",
            },
        ],
    }
