"""docs/guard_collapse.svg: one collapse of the battery, with the step at which the guard stops it."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt

CASE = "obesity dpo 1e-3 beta 0.05"
ROOT = Path(__file__).parents[1]
CURVES = {
    "loss": ("loss", None),
    "reward margin": ("margin", None),
    "chosen answers lose, nats per token": ("chosen_drop", "max_chosen_drop"),
    "neutral text loses, nats per token": ("neutral_drop", "max_neutral_drop"),
    "repeated 4-grams in samples, rise": ("repetition_rise", "max_repetition"),
}


def main() -> None:
    from conviction import Guard

    battery = json.loads((ROOT / "benchmarks/results/guard_battery.json").read_text(encoding="utf-8"))
    run = next(r for r in battery["runs"] if r["case"] == CASE)
    panels = []
    for title, (name, limit) in CURVES.items():
        points = []
        for line in run["trace"]:
            value = {**line, **line["guard"], **(line["guard"]["sample"] or {})}.get(name)
            if value is not None:
                points.append({"step": line["step"], "value": value})
        curve = (
            alt.Chart(alt.Data(values=points))
            .mark_line(point=True)
            .encode(x=alt.X("step:Q", title="step"), y=alt.Y("value:Q", title=None))
        )
        layers = [curve]
        for step, colour in ((run["default"]["stopped_at"], "crimson"), (run["first_broken_step"], "grey")):
            rule = alt.Chart(alt.Data(values=[{"x": step}])).mark_rule(color=colour, strokeDash=[4, 3])
            layers.append(rule.encode(x=alt.X("x:Q", title="step")))
        if limit is not None:
            line = alt.Chart(alt.Data(values=[{"y": getattr(Guard(), limit)}])).mark_rule(color="orange")
            layers.append(line.encode(y="y:Q"))
        panels.append(alt.layer(*layers).properties(width=280, height=90, title=title))
    title = f"{CASE}: stopped after the red step; grey: the first samples that a stranger calls broken; orange: limits"
    path = ROOT / "docs/guard_collapse.svg"
    alt.concat(*panels, columns=2).properties(title=alt.Title(title, fontSize=11)).save(str(path))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
