"""Plot the interactive figures of the gallery, which need no kernel: `gallery.py OUT`."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plotly.graph_objects as go
import torch
from plotly.colors import DEFAULT_PLOTLY_COLORS
from plotly.subplots import make_subplots

from cups.core.pictures import image_rgb, panoptic_rgb
from cups.core.records import VOID, Calibration, PanopticLabel
from cups.core.rigid import invert, transform
from cups.core.splits import ThingStuffSplit, split_by_share
from cups.core.taxonomy import CITYSCAPES_19
from cups.evaluation.panoptic import panoptic_scores
from cups.stages.pipeline import FrameAnalysis, PseudoLabelSettings, analyse, describe, find_pseudo_classes
from cups.street.scenes import StreetScene, street_scene
from cups.workbench.frames import matched_colours

HEIGHT, WIDTH = 256, 512
SEEDS = [(5, 11), (5, 8), (5, 1), (5, 3)]
"""Street scenes that show the classes; the first is shown in the figures."""

MARGIN = {"l": 0, "r": 0, "t": 0, "b": 0}
PLAIN = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#888"},
         "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#888", "activecolor": "#0a7d91"}}  # fmt: skip


def analysed() -> tuple[list[StreetScene], list[FrameAnalysis], ThingStuffSplit]:
    """Return some street scenes, what the stages make of them, and which classes are things."""
    scenes = [street_scene(seed, HEIGHT, WIDTH) for seed in SEEDS]
    settings = PseudoLabelSettings()
    classes = find_pseudo_classes([describe(scene.sample, settings) for scene in scenes], settings)
    found = [analyse(scene.sample, classes, settings) for scene in scenes]
    return scenes, found, split_by_share(classes.share, settings.thing_threshold)


def upright(points: torch.Tensor) -> np.ndarray:
    """Return points (N, 3) in camera coordinates (right, down, ahead) as right, ahead, up."""
    right, down, ahead = points.reshape(-1, 3).unbind(-1)
    return torch.stack([right, ahead, -down], -1).numpy().astype(np.float32)


def camera_trace(calibration: Calibration, depth_m: float = 1.5) -> go.Scatter3d:
    """Return the camera as a pyramid over its image."""
    corners = [(0, 0), (calibration.width, 0), (calibration.width, calibration.height), (0, calibration.height)]
    rays = [((x - calibration.cx) / calibration.fx, (y - calibration.cy) / calibration.fy, 1.0) for x, y in corners]
    a, b, c, d = (depth_m * torch.tensor(ray) for ray in rays)
    eye = torch.zeros(3)
    x, y, z = upright(torch.stack([eye, a, b, eye, c, d, eye, a, d, c, b])).T
    line = {"color": "#888", "width": 4}
    return go.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, name="camera", hoverinfo="name")


def points_trace(points: torch.Tensor, name: str, size: float, **marker) -> go.Scatter3d:
    """Return a cloud of points."""
    x, y, z = upright(points).T
    return go.Scatter3d(x=x, y=y, z=z, mode="markers", marker={"size": size, **marker}, name=name, hoverinfo="name")


def arrow_trace(start: torch.Tensor, step: torch.Tensor, name: str) -> list[go.Scatter3d | go.Cone]:
    """Return an arrow from `start` along `step`, four times as long so that it can be seen."""
    ends = upright(torch.stack([start, start + 4 * step]))
    line = go.Scatter3d(
        x=ends[:, 0], y=ends[:, 1], z=ends[:, 2], mode="lines", line={"color": "#e4007c", "width": 6}, name=name,
        hoverinfo="name",
    )  # fmt: skip
    (x, y, z), (u, v, w) = ends[1], (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    tip = go.Cone(
        x=[x], y=[y], z=[z], u=[u], v=[v], w=[w], sizemode="absolute", sizeref=0.6, anchor="center", showscale=False,
        colorscale=[[0, "#e4007c"], [1, "#e4007c"]], name=name, hoverinfo="name",
    )  # fmt: skip
    return [line, tip]


def scene_flow_figure(frame: FrameAnalysis, most: int = 14000, far_m: float = 30.0) -> go.Figure:
    """Plot the trusted points in space: what rests in its own colours, what moves by how far it moved."""
    flow, found, image = frame.flow, frame.proposals, image_rgb(frame.sample.left_0)
    near = flow.trusted & (flow.points_0[..., 2] < far_m)
    still = near & (found.instance == 0)
    chosen = torch.randperm(int(still.sum()), generator=torch.Generator().manual_seed(0))[:most]
    seen = [f"rgb({r},{g},{b})" for r, g, b in image[still.numpy()][chosen.numpy()]]
    traces = [points_trace(flow.points_0[still][chosen], "at rest", 1.5, color=seen), camera_trace(flow.calibration)]
    for number, motion in enumerate(found.motions, 1):
        mask = near & (found.instance == number)
        if mask.any():
            traces += _moving(flow.points_0[mask], invert(found.camera_motion) @ motion, number)
    figure = go.Figure(traces)
    view = {"eye": {"x": -0.3, "y": -1.15, "z": 0.5}, "center": {"x": 0.0, "y": 0.1, "z": -0.28}}
    axes = {name: {"title": title, "backgroundcolor": "rgba(0,0,0,0)", "gridcolor": "rgba(128,128,128,0.3)"}
            for name, title in (("xaxis", "right, m"), ("yaxis", "ahead, m"), ("zaxis", "up, m"))}  # fmt: skip
    figure.update_layout(scene={**axes, "aspectmode": "data", "camera": view}, showlegend=False, height=620)
    colours = {"colorscale": "Turbo", "colorbar": {"title": "moved, m", "len": 0.6}}
    figure.update_layout(margin=MARGIN, coloraxis=colours)
    return figure


def _moving(points: torch.Tensor, own_motion: torch.Tensor, number: int) -> list[go.Scatter3d | go.Cone]:
    """Return the points of an object, coloured by how far each moved by itself, and an arrow above it."""
    steps = transform(own_motion, points) - points
    name = f"object {number}: moved {steps.norm(dim=-1).median():.2f} m"
    cloud = points_trace(points, name, 2.5, color=steps.norm(dim=-1).numpy(), coloraxis="coloraxis")
    start = torch.cat([points[:, :1].median(0).values, points[:, 1:2].amin(0) - 0.3, points[:, 2:].median(0).values])
    return [cloud, *arrow_trace(start, steps.median(0).values, name)]


def class_names(label: PanopticLabel, names: list[str]) -> np.ndarray:
    """Return the text of a pixel under the pointer: the class and, for an object, its number."""
    table = np.array([*names, *["void"] * (VOID + 1 - len(names))])
    text = table[label.semantic.numpy()]
    numbers = label.instance.numpy()
    return np.where(numbers > 0, np.char.add(np.char.add(text, " "), numbers.astype(str)), text)


def panoptic_figure(scenes: list[StreetScene], found: list[FrameAnalysis], split: ThingStuffSplit) -> go.Figure:
    """Plot image, pseudo-label and ground truth, which zoom together and name the pixel under the pointer."""
    pairs = [(frame.label, scene.truth.panoptic) for frame, scene in zip(found, scenes, strict=True)]
    matched = panoptic_scores(pairs, split)["assignments"]
    known = CITYSCAPES_19
    names = [f"{k} ({known.names[m]})" if m < len(known) else f"{k} (no class)" for k, m in enumerate(matched)]
    label, truth = pairs[0]
    panes = {
        "left image": (image_rgb(scenes[0].sample.left_0), None),
        "pseudo-label": (panoptic_rgb(label, matched_colours(matched)), class_names(label, names)),
        "ground truth": (panoptic_rgb(truth, known.colours), class_names(truth, list(known.names))),
    }
    figure = make_subplots(3, 1, vertical_spacing=0.04, subplot_titles=list(panes))
    for row, (rgb, text) in enumerate(panes.values(), 1):
        hover = {"hoverinfo": "skip"} if text is None else {"text": text, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_trace(go.Image(source=png(rgb), **hover), row, 1)
    figure.update_xaxes(visible=False, matches="x").update_yaxes(visible=False, matches="y")
    figure.update_layout(height=1180, margin={**MARGIN, "t": 30}, dragmode="zoom")
    return figure


def png(rgb: np.ndarray) -> str:
    """Return a picture (H, W, 3) as the address of a PNG."""
    _, data = cv2.imencode(".png", rgb[..., ::-1])
    return "data:image/png;base64," + base64.b64encode(data).decode()


def lines(rows: list[dict[str, float]], factor: float, first: bool) -> list[go.Scatter]:
    """Return a line for every number of the rows over their steps; sums are thick, names stand in the legend once."""
    steps, colours = [row["step"] for row in rows], DEFAULT_PLOTLY_COLORS
    names = [key for key in rows[0] if key not in ("step", "learning_rate")]
    found = []
    for number, key in enumerate(names):
        line = {"width": 3 if key in ("total", "pq") else 1.2, "color": colours[number % len(colours)]}
        values, shown = [factor * row[key] for row in rows], {"legendgroup": key, "showlegend": first}
        found.append(go.Scatter(x=steps, y=values, name=key.replace("_", " "), mode="lines", line=line, **shown))
    return found


def curves_figure(runs: dict[str, dict[str, Any]]) -> go.Figure:
    """Plot losses and scores of runs over their steps; a click on a name hides its curves."""
    titles = [f"{name}: {what}" for name in runs for what in ("losses", "unseen frames, %")]
    figure = make_subplots(len(runs), 2, subplot_titles=titles, vertical_spacing=0.16)
    for row, run in enumerate(runs.values(), 1):
        figure.add_traces(lines(run["history"], 1, row == 1), row, 1)
        figure.add_traces(lines(run["validation"], 100, row == 1), row, 2)
        text = {"annotation_text": "pseudo-labels, pq", "annotation_position": "bottom right"}
        figure.add_hline(100 * run["labels_pq"], row=row, col=2, line_dash="dash", line_color="#888", **text)
        figure.update_yaxes(type="log", dtick=1, row=row, col=1).update_yaxes(range=[0, 30], row=row, col=2)
    figure.update_layout(height=360 * len(runs) + 60, hovermode="x unified", margin={**MARGIN, "t": 60})
    figure.update_xaxes(title="step", rangemode="tozero", gridcolor="rgba(128,128,128,0.25)")
    return figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)")


def write(figure: go.Figure, path: Path) -> None:
    """Write a figure as a piece of a page that has loaded plotly."""
    figure.update_layout(PLAIN)
    options = {"displaylogo": False, "responsive": True, "scrollZoom": True}
    html = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{path.stem}", config=options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def main(out: Path) -> None:
    """Plot all figures into the folder `out`."""
    scenes, found, split = analysed()
    write(scene_flow_figure(found[0]), out / "scene_flow.html")
    write(panoptic_figure(scenes, found, split), out / "panoptic.html")
    runs = json.loads((Path(__file__).parent / "curves.json").read_text(encoding="utf-8"))
    write(curves_figure(runs["runs"]), out / "curves.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
