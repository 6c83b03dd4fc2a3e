"""The comparison report: JSON with the fields of the first experiment, Markdown with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.report import table
from eval.core.stats import mcnemar, wilson
from nested_jax.data.records import read_object

GROUPS = ("mul_table", "mul_multidigit", "addition")
Found = Mapping[str, Mapping[str, Any]]


def result(found: Found, task: str, stage: str, condition: str) -> dict[str, Any] | None:
    """Return a result with its items; None where it was not made."""
    row = found.get(f"score {task} after {stage}/{condition}")
    return None if row is None else read_object(Path(row["file"]), metrics=dict, items=list)


def gsm8k_numbers(found: Found, condition: str) -> dict[str, Any]:
    """Return the numbers of GSM8K under the names of the first experiment, and 50 examples."""
    scored = result(found, "gsm8k", "gsm8k", condition)
    if scored is None:
        return {}
    numbers = scored["metrics"]["gsm8k"]
    return {
        "condition": condition,
        "model_path": scored["subject"]["checkpoint"],
        "accuracy": numbers["accuracy"],
        "accuracy_interval": numbers["accuracy_interval"],
        "strict": numbers["strict"],
        "flexible": numbers["flexible"],
        "digits": numbers["digits"],
        "correct": sum(item["correct"] for item in scored["items"]),
        "total": numbers["n"],
        "hit_limit": numbers["hit_limit"],
        "avg_response_tokens": numbers["tokens_per_answer"],
        "mul_token_count": numbers["domain_tokens"],
        "mul_tokens_per_response": numbers["domain_tokens_per_answer"],
        "eval_time_seconds": scored["seconds"],
        "samples_per_second": numbers["n"] / max(scored["seconds"], 1e-9),
        "batch_size": scored["options"]["batch_size"],
        "examples": [example(item) for item in scored["items"][:50]],
    }


def example(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question": item["question"],
        "true_answer": item["gold"],
        "pred_answer": item["answer"],
        "response": item["response"],
        "is_correct": item["correct"],
        "num_tokens": item["tokens"],
        "mul_tokens": item["domain_tokens"],
    }


def probe_numbers(found: Found, stage: str, condition: str) -> dict[str, Any]:
    """Return the numbers of the probes under the names of the first experiment, with controls."""
    scored = result(found, "probes", stage, condition)
    if scored is None:
        return {}
    whole = scored["metrics"]["all"]
    groups = {}
    for name in GROUPS:
        group = scored["metrics"][name]
        own = [item for item in scored["items"] if item["group"] == name]
        groups[name] = {
            "accuracy": group["accuracy"],
            "accuracy_interval": group["accuracy_interval"],
            "correct": sum(item["correct"] for item in own),
            "total": group["n"],
            "mul_tokens": group["domain_tokens"],
            "digits": group["digits"],
            "constant": group["constant"],
            "copy": group["copy"],
            "above_controls": above(group),
        }
    return {
        "overall_accuracy": whole["accuracy"],
        "accuracy_interval": whole["accuracy_interval"],
        "total_correct": sum(item["correct"] for item in scored["items"]),
        "total_samples": whole["n"],
        "category_accuracies": groups,
        "total_mul_tokens": whole["domain_tokens"],
        "mul_tokens_per_probe": whole["domain_tokens_per_answer"],
        "avg_response_tokens": whole["tokens_per_answer"],
    }


def above(group: Mapping[str, Any]) -> bool:
    """Whether an accuracy is above both controls with its whole interval."""
    return bool(group["accuracy_interval"][0] > max(group["constant"], group["copy"]))


def paired(results: Sequence[dict[str, Any] | None], group: str = "") -> float | None:
    """Return the p of McNemar's test of two results on the same items; None if one is missing."""
    right = [
        [item["correct"] for item in each["items"] if group in ("", item["group"])]
        for each in results
        if each is not None
    ]
    return mcnemar(right[0], right[1]) if len(right) == 2 else None


def compared(found: Found, one: str, other: str) -> dict[str, Any]:
    """Return the block ``comparison`` of two conditions."""
    gsm8k = [gsm8k_numbers(found, c) for c in (one, other)]
    probes = [probe_numbers(found, "gsm8k", c) for c in (one, other)]
    a, b = (numbers["accuracy"] for numbers in gsm8k)
    x, y = (numbers["overall_accuracy"] for numbers in probes)
    by_category = {}
    tested = [result(found, "probes", "gsm8k", c) for c in (one, other)]
    for name in GROUPS:
        values = [numbers["category_accuracies"][name]["accuracy"] for numbers in probes]
        by_category[name] = {
            one: values[0],
            other: values[1],
            "delta": values[1] - values[0],
            "p": paired(tested, name),
        }
    return {
        "gsm8k": {
            f"{one}_accuracy": a,
            f"{other}_accuracy": b,
            "delta": b - a,
            "relative_improvement": (b - a) / a if a else None,
            "p": paired([result(found, "gsm8k", "gsm8k", c) for c in (one, other)]),
        },
        "arithmetic": {
            f"{one}_accuracy": x,
            f"{other}_accuracy": y,
            "delta": y - x,
            "p": paired(tested),
        },
        "arithmetic_by_category": by_category,
        "mul_token_usage": {
            "total_mul_tokens": gsm8k[1]["mul_token_count"],
            "per_response": gsm8k[1]["mul_tokens_per_response"],
        },
    }


def report(found: Found, conditions: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole report."""
    made: dict[str, Any] = {"settings": dict(settings)}
    for c in conditions:
        made[c] = {
            "data": found.get(f"shards/{c}", {}),
            "runs": {s: found[f"{s}/{c}"] for s in ("pretrain", "tulu", "gsm8k")},
            "hellaswag": found[f"checkpoints/{c}"]["checkpoints"],
            "gsm8k": gsm8k_numbers(found, c),
            "arithmetic": probe_numbers(found, "gsm8k", c),
            "arithmetic_after_pretrain": probe_numbers(found, "pretrain", c),
            "arithmetic_after_tulu": probe_numbers(found, "tulu", c),
            "export": found[f"export/{c}"],
        }
    if {"baseline", "mul_tokens"} <= set(conditions):
        made["comparison"] = compared(found, "baseline", "mul_tokens")
    return made


# --- Markdown ------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def with_interval(correct: int, total: int) -> str:
    low, high = wilson(correct, total)
    return f"{correct}/{total} = {percent(correct / total)} % ({percent(low)} to {percent(high)})"


def markdown(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    """Return the report as a page: text and runs, probes with controls, GSM8K, HellaSwag."""
    parts = [
        "# Domain tokens: comparison",
        f"Size `{made['settings']['size']}`, rule `{made['settings']['rule']}`. One seed. "
        "Intervals are 95 % (Wilson); p is McNemar's exact test on the same items.",
        verdict(made, conditions),
        "## Text and pretraining",
        text_table(made, conditions),
        "## Probes",
        "An answer is right if its first number is. constant: the best single number for a group; "
        "copy: a number of the question; digits: without domain tokens.",
        probe_table(made, conditions),
        "## GSM8K, after both stages of fine-tuning",
        gsm8k_table(made, conditions),
        "## HellaSwag at the checkpoints of pretraining (completion protocol)",
        hellaswag_table(made, conditions),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    """Say plainly whether the probes are above both controls, and what the pair shows."""
    after = {"gsm8k": "arithmetic", "tulu": "arithmetic_after_tulu"}
    good = [
        f"{c} after {stage}"
        for c in conditions
        for stage, name in after.items()
        if made[c][name]["category_accuracies"]["mul_table"]["above_controls"]
    ]
    said = (
        f"The times table is above both controls: {', '.join(good)}."
        if good
        else "**The times table is above both controls in no condition.**"
    )
    if "comparison" not in made:
        return said
    pair = made["comparison"]["arithmetic_by_category"]["mul_table"]
    shown = "a difference" if pair["p"] < 0.05 else "no difference that this size can show"
    return (
        f"{said} After stage 2: baseline {percent(pair['baseline'])} %, "
        f"mul_tokens {percent(pair['mul_tokens'])} % (p = {pair['p']:.3g}): {shown}."
    )


def text_table(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    rows = []
    for c in conditions:
        data, run = made[c]["data"], made[c]["runs"]["pretrain"]
        rows.append(
            [
                c,
                f"{run['unique_tokens']:,}",
                f"{run['epochs']:.2f}",
                f"{data.get('domain_tokens', 0):,}",
                f"{data.get('bytes', 0) / max(run['unique_tokens'], 1):.3f}",
                f"{run['valid_loss']:.4f}",
                f"{run['valid_bits_per_byte']:.4f}",
                f"{run['tokens_per_s']:,.0f}",
            ]
        )
    head = ["", "unique tokens", "epochs", "domain tokens", "bytes per token", "valid loss"]
    return table([*head, "bits per byte", "tokens/s"], rows)


def probe_table(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    rows = []
    stages = ("arithmetic_after_pretrain", "arithmetic_after_tulu", "arithmetic")
    for stage, name in zip(("pretraining", "stage 1", "stage 2"), stages, strict=True):
        for c in conditions:
            for group, x in made[c][name]["category_accuracies"].items():
                right = with_interval(x["correct"], x["total"])
                shares = (percent(x[key]) for key in ("digits", "constant", "copy"))
                rows.append([f"{c}, {stage}", group, right, *shares, f"{x['mul_tokens']}"])
    return table(["", "group", "right", "digits", "constant", "copy", "domain tokens"], rows)


def gsm8k_table(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    rows = []
    for c in conditions:
        x = made[c]["gsm8k"]
        rows.append(
            [
                c,
                with_interval(x["correct"], x["total"]),
                *(percent(x[name]) for name in ("strict", "flexible", "digits", "hit_limit")),
                f"{x['avg_response_tokens']:.1f}",
                f"{x['mul_tokens_per_response']:.2f}",
            ]
        )
    head = ["", "right", "strict", "flexible", "digits", "cut by the limit"]
    return table([*head, "tokens per answer", "domain tokens per answer"], rows)


def hellaswag_table(made: Mapping[str, Any], conditions: Sequence[str]) -> str:
    rows = []
    for c in conditions:
        for point in made[c]["hellaswag"]:
            x = point["tasks"]["hellaswag"]["hellaswag"]
            low, high = wilson(round(x["acc_norm"] * x["n"]), x["n"])
            interval = f"{x['acc_norm']:.4f} ({low:.4f} to {high:.4f})"
            rows.append(
                [c, f"{point['step']:,}", f"{point['tokens_seen']:,}", f"{x['acc']:.4f}", interval]
            )
    return table(["", "step", "tokens", "acc", "acc_norm"], rows)
