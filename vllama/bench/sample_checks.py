"""Check the token counts and durations that servers report against the measured ones, and count failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from vllama.bench.fleet import LoadOutcome
from vllama.bench.result import Run, Sample

MISCOUNT = 0.05
"""The end of a text costs a token more, and cutting it up anew may give others: so much is no difference."""
TOO_SHORT = 0.25
SLACK = 50_000_000
"""ns by which a duration may differ anyway."""
LONGER = 5_000_000
OFTEN = 0.1


def count_tokens(seen: LoadOutcome, count: Callable[[str], int] | None) -> LoadOutcome:
    """Return the samples with the tokens counted anew where the text was kept."""
    if count is None:
        return seen
    samples = list(seen.samples)
    for kept in seen.kept:
        samples[kept.sample] = replace(samples[kept.sample], counted_out=count(kept.text))
    return replace(seen, samples=tuple(samples))


def check_samples(runs: Sequence[Run]) -> list[str]:
    """Return a warning for each thing about a system that its reader has to know."""
    by_system: dict[str, list[Sample]] = {}
    for run in runs:
        by_system.setdefault(run.system, []).extend(run.samples)
    return [f"{system}: {warning}" for system, samples in by_system.items() for warning in _warnings(samples)]


def _warnings(samples: Sequence[Sample]) -> list[str]:
    ok = [sample for sample in samples if sample.outcome == "ok"]
    return [text for text in (_failures(samples), _missing_counts(ok), _miscounts(ok), _durations(ok)) if text]


def _failures(samples: Sequence[Sample]) -> str:
    failed = [sample for sample in samples if sample.outcome not in {"ok", "cancelled"}]
    if not failed:
        return ""
    counts = Counter(sample.outcome for sample in failed)
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    (error, _), *_ = Counter(sample.error or sample.outcome for sample in failed).most_common(1)
    return f"{len(failed)} of {len(samples)} requests failed ({kinds}), most often: {error}"


def _missing_counts(ok: Sequence[Sample]) -> str:
    without = sum(sample.tokens_out is None for sample in ok)
    return f"{without} of {len(ok)} replies say nothing of their tokens: they add none" if without else ""


def _miscounts(ok: Sequence[Sample]) -> str:
    pairs = [(s.tokens_out, s.counted_out) for s in ok if s.tokens_out is not None and s.counted_out is not None]
    said, counted = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    if abs(said - counted) <= MISCOUNT * said + len(pairs):
        return ""
    return f"it counted {said} tokens in {len(pairs)} replies, the tokenizer {counted} in their text"


def _durations(ok: Sequence[Sample]) -> str:
    spans = [(sample.server.total, sample.end - sample.sent) for sample in ok if sample.server is not None]
    longer = sum(said > seen + LONGER for said, seen in spans)
    shorter = sum(said < seen * (1 - TOO_SHORT) - SLACK for said, seen in spans)
    if longer > OFTEN * len(spans):
        return f"its total_duration is longer than what the client saw, in {longer} of {len(spans)} replies"
    if shorter > OFTEN * len(spans):
        return f"its total_duration is much shorter than what the client saw, in {shorter} of {len(spans)} replies"
    return ""
