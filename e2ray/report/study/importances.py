"""Which settings tell good trials from the rest."""

from matplotlib.figure import Figure

from e2ray.report.frame.drawing import BLUE, INK, new_figure, plain, tidy
from e2ray.report.frame.page import Point
from e2ray.report.frame.text import plural, share_words
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import measured_trials, short_name
from e2ray.search.record import StudyResults


def draw_importances(results: StudyResults) -> Figure | None:
    """Return each setting's importance for being among the best quarter of the full trials, the largest on top."""
    ordered = sorted(results.importances.items(), key=lambda item: (-item[1], item[0]))
    if not ordered:
        return None
    figure = new_figure(0.36 * len(ordered) + 1.0)
    axis = figure.subplots()
    shares = [100 * share for _, share in ordered]
    axis.barh(range(len(ordered)), shares, color=BLUE, height=0.65)
    spans = [results.importance_spread.get(path, (share, share)) for path, share in ordered]
    axis.hlines(range(len(ordered)), [100 * low for low, _ in spans], [100 * high for _, high in spans], INK, lw=1)
    most = max(1.0, *shares, *(100 * high for _, high in spans))
    for y, (share, (_, high)) in enumerate(zip(shares, spans, strict=True)):
        place = max(share, 100 * high) + 0.01 * most
        axis.text(place, y, f"{share:.0f} %", va="center", fontsize=9.5, color=INK)
    axis.set_yticks(range(len(ordered)), [plain(short_name(path)) for path, _ in ordered], fontsize=10)
    axis.set(ylim=(len(ordered) - 0.4, -0.6), xlim=(0, 1.1 * most))
    axis.set_xlabel("importance for being among the best quarter of the full trials (%); line: any one trial left out")
    axis.tick_params(length=0, axis="y")
    tidy(axis, grid="x")
    return figure


def _findings(results: StudyResults) -> list[Point]:
    head, trials = "Settings that matter.", len(measured_trials(results))
    if not results.importances:
        return [Point(head, f"Not computable: {plural(trials, 'trial')} ran in full.", warning=True)]
    ordered = sorted(results.importances.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(
        f"{short_name(path)} {share_words(share, results.importance_spread.get(path))}" for path, share in ordered[:4]
    )
    rest = f"; the other {len(ordered) - 4} share the rest" if len(ordered) > 4 else ""
    known = (
        "In brackets the lowest and the highest share with any one trial left out; where these overlap, the order says "
        "nothing."
        if results.importance_spread
        else "Their own error was not measured, so take their order for a hint."
    )
    return [
        Point(
            head,
            f"What tells the best quarter of {plural(trials, 'full trial')} from the rest: {told}{rest}. {known}",
        )
    ]


IMPORTANCES = study_section(
    "Importances",
    "importances",
    Drawing(
        "importances",
        draw_importances,
        "Bars of each setting's importance for being among the best quarter of the full trials",
        "What tells the best quarter of the full trials from the rest, by PED-ANOVA; the shares sum to 1. A thin line "
        "spans the shares with any one trial left out: what a single trial decides. The true uncertainty is larger.",
        "The importances could not be computed: too few trials ran in full, or they all came out alike.",
    ),
    findings=_findings,
)
