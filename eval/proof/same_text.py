"""Cells of one case are compared only if they were scored and trained on the same text."""

from __future__ import annotations

from collections.abc import Sequence

from eval.core.same_text import TRAIN_ORDER, VALID_TEXT, Named, not_recorded, odd_ones
from eval.proof.cells import Result


def named(results: Sequence[Result]) -> list[Named]:
    return [Named(f"{r.cell.model}, seed {r.cell.seed}", r.summary) for r in results]


def other_text(results: Sequence[Result]) -> dict[str, str]:
    """Return why results cannot stand beside those of their case, by folder of the cell.

    All of a case are scored on one text; those of one seed are trained on the same rows.
    """
    found: dict[str, str] = {}
    done = [result for result in results if not result.failed]
    for case in dict.fromkeys(r.cell.case.name for r in done):
        of_case = [r for r in done if r.cell.case.name == case]
        found |= by_folder(of_case, VALID_TEXT)
        for seed in dict.fromkeys(r.cell.seed for r in of_case):
            of_seed = [r for r in of_case if r.cell.seed == seed and r.cell.folder not in found]
            found |= by_folder(of_seed, TRAIN_ORDER)
    return found


def by_folder(results: Sequence[Result], field: str) -> dict[str, str]:
    runs = [Named(result.cell.folder, result.summary) for result in results]
    return odd_ones(runs, field)


def text_lines(results: Sequence[Result]) -> str:
    """Return which text the cases were scored on, which runs do not say, and which are left out.

    The rows of a synthetic task are those of its command, whether or not a run says so.
    """
    lines = []
    why = other_text(results)
    done = [r for r in results if not r.failed]
    for case in dict.fromkeys(r.cell.case.name for r in done):
        of_case = [r for r in done if r.cell.case.name == case and r.cell.folder not in why]
        texts = {r.summary[VALID_TEXT] for r in of_case if r.summary.get(VALID_TEXT)}
        old = not_recorded(named(of_case), VALID_TEXT)
        is_text = bool(of_case) and not of_case[0].cell.load().data.is_synthetic
        if is_text and texts:
            scored = len(of_case) - len(old)
            lines.append(
                f"- {case}: {scored} runs scored on the same held-out text "
                f"(`{VALID_TEXT}` {texts.pop()[:12]}), trained in the same order within a seed"
            )
        if old and is_text:
            lines.append(f"- {case}: held-out text not recorded: {'; '.join(old)}")
    lines += [f"- left out: {folder}: {reason}" for folder, reason in why.items()]
    return "\n".join(lines)
