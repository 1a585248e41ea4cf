"""Identity of people who cross at close range: the figures of ``associate.people=all``.

    python tests/benchmarks/crowd.py [--fit] [--json FILE] [--motion POSES.npz] [--seeds 201,202]
        [--only NAME]

Clips of motion capture (see ``models/synthetic/poses.py`` for the file) are laid over each other so that
somebody is within 0.7 m of somebody nearly always and nobody nearer than 0.33 m; a simulated detector sees
them, with its usual errors and those of bodies that hide each other; the association of the product follows
them. Scored are the bodies of its tracks, in the frames in which a view shows them, of who is known to be a
person when the window of the frame is given out. Printed are means and the worst over the seeds: IDF1 (a
person-frame is right within 0.3 m, mean over the keypoints), identity switches, the longest run of frames
under another person's id, frames in which ``people=main`` shows somebody else, person-frames missed and
false, those that triangulation of a frame alone, with the true association, does not place within 0.3 m, and
MPJPE of the tracked bodies.

With ``--fit`` bodies are fitted in some of the scenes. Printed are the MPJPE of the fitted bodies' keypoints,
mean over people and that of the worst person; the share of the person-frames that are fitted; IDF1 of the
bodies, fitted or carried over a short gap, mean and least, and their switches; and the association's share of
the processor time from detections to bodies. Then both times, a frame, for one to eight people. What FILE has
of other figures stays there.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterable, Iterator, Sequence  # noqa: E402
from dataclasses import asdict, dataclass, replace  # noqa: E402
from fractions import Fraction  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from crowds import USUAL, Crowd, film  # noqa: E402

from models.body import load_body, pelvis_at_rest, pose_keypoints  # noqa: E402
from models.evaluation.identity import MATCH_M, Identity, score_identities  # noqa: E402
from models.fit.windows import SmplifyConfig  # noqa: E402
from models.geometry.association import MatchConfig  # noqa: E402
from models.geometry.people import count_at_end, track_people  # noqa: E402
from models.geometry.tracks import Tracks  # noqa: E402
from models.geometry.triangulation import triangulate  # noqa: E402
from models.synthetic.detections import Faults  # noqa: E402
from models.synthetic.detector import Noise  # noqa: E402
from pipeline.batches import KeypointBatch, Status  # noqa: E402
from stages.associate import associate  # noqa: E402
from stages.keypoints import KeypointsConfig  # noqa: E402
from stages.regress import RegressConfig, load_net, regress  # noqa: E402
from stages.smplify import smplify  # noqa: E402

Array = np.ndarray
CFG = MatchConfig(people="all")

MOTION_FPS = 30
"""Of the file."""
CATEGORIES = (
    "salsa_dance", "martial_arts", "indian_dance", "playground", "modern_dance", "walk", "walking",
    "walk_run", "gymnastics_dance", "soccer",
)  # fmt: skip
MIN_FRAMES = 140
"""Of a clip: shorter ones repeat too soon."""
JUMP_M = 0.2
"""Between frames of a clip: bad frames were cut out there."""
NEAR_M, APART_M = 0.7, 0.33
PLACINGS = 300
"""Places and headings tried for each person."""
Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@dataclass(frozen=True)
class Scene:
    """A row of the table."""

    name: str
    people: int = 4
    cameras: int = 5
    fps: int = 30
    seconds: float = 10.0
    noise: Noise = Noise(3, 0.05, 0.1, 0.03, 0)
    faults: Faults = USUAL


SCENES = (
    Scene("4 people x 5 views"),
    Scene("4 x 4", cameras=4),
    Scene("8 x 5", people=8),
    Scene("4 x 3", cameras=3),
    Scene("2 x 2", people=2, cameras=2),
    Scene("4 x 5, 15 fps", fps=15),
    Scene("4 x 5, 8 px, 15 % outliers", noise=Noise(8, 0.15, 0.1, 0.03, 0)),
    Scene("4 x 5, 35 % missing, 15 % blind", noise=Noise(3, 0.05, 0.35, 0.15, 0)),
    Scene("4 x 5, 20 % left as right", faults=replace(USUAL, exchanged=0.2)),
    Scene("4 x 5, 40 % in two parts", faults=replace(USUAL, split=0.4)),
    Scene("4 x 5, 1 phantom, 3 static", faults=replace(USUAL, phantoms=1.0, static_phantoms=3)),
)
FITTED = (
    "4 people x 5 views", "8 x 5", "4 x 3", "4 x 5, 20 % left as right", "4 x 5, 35 % missing, 15 % blind",
)  # fmt: skip
TIMED = tuple(Scene(f"{p} x {v}", p, v, seconds=5.0) for v in (4, 8) for p in (1, 2, 4, 8))


@dataclass(frozen=True)
class Score(Identity):
    """Figures of one run; MPJPE is of the tracked bodies."""

    ids: int
    unseen: float
    """Share of the person-frames that the true association of the detections does not place."""
    main_wrong: int
    """Frames in which ``people=main`` shows anybody but the one it shows first."""
    nearest_m: float
    """Least distance of two people, root to root."""
    near: float
    """Share of frames with two people within ``NEAR_M``."""


@cache
def clips(path: Path) -> tuple[tuple[Array, Array], ...]:
    """Rotations (n, 24, 3) axis-angle and root (n, 3), y up, of every long clip: its longest stretch without
    a jump."""
    with np.load(path) as file:
        pose, trans, clip, frame = (file[k] for k in ("body_pose", "trans", "clip_id", "frame_id"))
        categories = file["clip_category"]
    out = []
    for number in np.flatnonzero(np.isin(categories, CATEGORIES)):
        rows = np.flatnonzero(clip == number)
        step = np.linalg.norm(np.diff(trans[rows], axis=0), axis=1)
        cuts = np.flatnonzero((np.diff(frame[rows]) != 1) | (step > JUMP_M)) + 1
        longest = max(np.split(rows, cuts), key=len)
        if len(longest) >= MIN_FRAMES:
            out.append((pose[longest].astype(float), trans[longest].astype(float)))
    return tuple(out)


def played(clip: tuple[Array, Array], frames: int, fps: float, begin: float) -> tuple[Array, Array]:
    """A clip there and back: rotations (T, 24, 3, 3) and root (T, 3), z up, from a share of it on."""
    pose, root = clip
    last = len(pose) - 1
    at = begin * last + np.arange(frames) * MOTION_FPS / fps
    at = np.abs((at + last) % (2 * last) - last)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, last), (at - low)[:, None]
    one, two = (Rotation.from_rotvec(pose[i].reshape(-1, 3)) for i in (low, high))
    turned = one * Rotation.from_rotvec((one.inv() * two).as_rotvec() * np.repeat(share, 24, axis=0))
    local = turned.as_matrix().reshape(frames, 24, 3, 3)
    local[:, 0] = Z_UP @ local[:, 0]
    return local, (root[low] * (1 - share) + root[high] * share) @ Z_UP.T


def crossing(path: Path, people: int, frames: int, fps: float, seed: int) -> tuple[Array, Array]:
    """Keypoints (T, P, 25, 3) and roots on the floor (T, P, 2), metres, of people at close range."""
    rng, body = np.random.default_rng([seed, 1]), load_body()
    choice = clips(path)
    radius = 0.5 * np.sqrt(people)
    points: list[Array] = []
    roots: list[Array] = []
    for number in rng.permutation(len(choice))[:people]:
        local, root = played(choice[number], frames, fps, rng.uniform())
        betas = torch.from_numpy(np.clip(rng.normal(0, 0.7, body.num_betas), -1.5, 1.5))
        turn, root = placed(root, roots, radius, rng)
        local[:, 0] = turn @ local[:, 0]
        transl = torch.from_numpy(root) - pelvis_at_rest(body.keypoints, betas[None])[0]
        world = pose_keypoints(body.keypoints, torch.from_numpy(local), betas, transl)[1].numpy()
        world[..., 2] -= world[..., 2].min()  # feet on the floor
        points.append(world)
        roots.append(root[:, :2])
    return np.stack(points, 1), np.stack(roots, 1)


def placed(
    root: Array, others: Sequence[Array], radius: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Heading (3, 3) and root (T, 3) of a person, near the others (T, 2) for as long as may be."""
    best = (-np.inf, np.eye(3), root)
    for _ in range(PLACINGS):
        turn = Rotation.from_euler("z", rng.uniform(0, 2 * np.pi)).as_matrix()
        path = root @ turn.T
        path = path - [*path.mean(0)[:2], 0.0] + [*rng.uniform(-radius, radius, 2), 0.0]
        score = 0.0 if np.linalg.norm(path[:, :2], axis=1).max() <= radius + 1.6 else -1e3
        if others:
            apart = np.stack([np.linalg.norm(path[:, :2] - other, axis=1) for other in others])
            score += (apart < NEAR_M).sum()
            if apart.min() < APART_M:
                score -= 5e3 + 1e4 * (APART_M - apart.min())
        if score > best[0]:
            best = (score, turn, path)
    return best[1], best[2]


def bodies(crowd: Crowd, found: Iterable[KeypointBatch]) -> Iterator[dict[int, Array]]:
    """Frame by frame, the keypoints (25, 3) of everybody of whom two views agree on some."""
    for batch in found:
        xy, sure = (x.numpy().astype(np.float64) for x in (batch.xy_px, batch.confidence))
        for frame in agreed(crowd, xy, sure):
            pairs = zip(batch.ids.tolist(), frame, strict=True)
            yield {person: x for person, x in pairs if np.isfinite(x[:, 0]).any()}


def tracked(crowd: Crowd) -> list[dict[int, Array]]:
    """Of every frame, the keypoints (25, 3) of each id whose track a view shows there."""
    ends = np.array([float(batch.time_s[0, -1]) for batch in crowd.batches()])
    xy, sure = crowd.rig.undistort_views(crowd.points[..., :2]), crowd.points[..., 2]
    times, tracks = np.arange(xy.shape[1]) / float(crowd.rate), Tracks.none()
    shown: list[dict[int, Array]] = []
    confirmed: dict[int, tuple[int, float]] = {}
    for t, now in enumerate(times):
        owned, tracks = track_people(crowd.rig, xy[:, [t]], sure[:, [t]], times[[t]], tracks, CFG)
        confirmed = {serial: (person, now) for serial, person in owned.confirmed.items()} | confirmed
        here = tracks.time_s == now
        shown.append(dict(zip(tracks.serial[here].tolist(), tracks.points[here], strict=True)))
    tracks = count_at_end(crowd.rig, tracks, len(times), float(times[-1]), CFG)
    confirmed = {serial: (person, times[-1]) for serial, person in tracks.confirmed.items()} | confirmed
    out = []
    for now, frame in zip(times, shown, strict=True):
        given_out_s = np.append(ends, ends[-1])[np.searchsorted(ends, ends[ends >= now][0] + CFG.presence_s)]
        known = {serial for serial, (_, since) in confirmed.items() if since <= given_out_s}
        out.append({confirmed[serial][0]: x for serial, x in frame.items() if serial in known})
    return out


def agreed(crowd: Crowd, xy_px: Array, confidence: Array) -> Array:
    """(T, P, 25, 3) keypoints on which two views agree, NaN elsewhere."""
    seen = triangulate(crowd.rig, xy_px, confidence)
    return np.where((seen.used.sum(0) >= 2)[..., None], seen.points, np.nan)


def unseen(crowd: Crowd) -> float:
    """Share of the person-frames that the detections do not place, each given to whom it shows."""
    shape = (*crowd.person.shape[:2], *crowd.world.shape[1:3])
    xy, sure = np.full((*shape, 2), np.nan), np.zeros(shape)
    for v, t, d in np.argwhere(crowd.person >= 0):
        at, points = (v, t, crowd.person[v, t, d]), crowd.points[v, t, d]
        new = (points[:, 2] > 0) & (sure[at] == 0)
        xy[at][new], sure[at][new] = points[new, :2], points[new, 2]
    xy = np.stack([crowd.rig.undistort(v, xy[v]) for v in range(len(xy))])
    away = np.linalg.norm(crowd.world - agreed(crowd, xy, sure), axis=-1)
    there = np.isfinite(away).any(-1)
    return 1 - float((np.nanmean(away[there], -1) < MATCH_M).sum() / there.size)


def not_the_first(crowd: Crowd) -> int:
    """Frames in which ``people=main`` shows anybody but the person it shows first."""
    shown = []
    for t, there in enumerate(
        bodies(crowd, associate(crowd.batches(), MatchConfig(people="main"), crowd.rig))
    ):
        for points in there.values():
            away = np.linalg.norm(crowd.world[t] - points, axis=-1)
            shown.append(int(np.nanmean(away, 1).argmin()))
    return sum(person != shown[0] for person in shown)


def score(crowd: Crowd, roots: Array) -> Score:
    """Compare tracks with the truth."""
    frames, people = crowd.world.shape[:2]
    shown = tracked(crowd)
    ids = sorted({person for frame in shown for person in frame})
    gap = np.full((frames, people, len(ids)), np.inf)
    for t, there in enumerate(shown):
        for person, points in there.items():
            away = np.linalg.norm(crowd.world[t] - points, axis=-1)
            gap[t, :, ids.index(person)] = np.nanmean(away, 1)
    there = np.isfinite(gap).any(1)
    apart = np.linalg.norm(roots[:, :, None] - roots[:, None], axis=-1) + np.diag(np.full(people, np.inf))
    return Score(
        **vars(score_identities(gap, np.ones((frames, people), bool), there)),
        ids=len(ids),
        unseen=unseen(crowd),
        main_wrong=not_the_first(crowd),
        nearest_m=float(apart.min()),
        near=float((apart.min((1, 2)) < NEAR_M).mean()),
    )


def scene_of(scene: Scene, path: Path, seed: int) -> tuple[Crowd, Array]:
    """The recording, and the roots of its people on the floor (T, P, 2), metres."""
    frames = round(scene.seconds * scene.fps)
    world, roots = crossing(path, scene.people, frames, scene.fps, seed)
    noise = replace(scene.noise, seed=seed)
    return film(world, scene.cameras, Fraction(scene.fps), noise, scene.faults), roots


def run(scene: Scene, path: Path, seed: int) -> Score:
    crowd, roots = scene_of(scene, path, seed)
    return score(crowd, roots)


@dataclass(frozen=True)
class FitScore:
    """Figures of the bodies of one run."""

    mpjpe_mm: tuple[float, ...]
    """Of each person, over 25 keypoints and the frames in which the fit is valid."""
    fitted: float
    """Share of the person-frames."""
    idf1: float
    """Of bodies that are fitted or carried over a short gap."""
    switches: int
    associate_ms: float
    """Processor time of the association, a frame."""
    all_ms: float
    """From detections to bodies."""


def fit(scene: Scene, path: Path, seed: int) -> FitScore:
    """Bodies of a scene against its people, each of whom has the track that is near them most often."""
    crowd, _ = scene_of(scene, path, seed)
    body, net = load_body(), load_net(RegressConfig())
    window = KeypointsConfig().window
    begun = time.process_time()
    found = list(associate(crowd.batches(window), CFG, crowd.rig))
    associated = time.process_time()
    poses = regress(iter(found), RegressConfig(), crowd.rig, body, net, window=window)
    fits = list(smplify(poses, SmplifyConfig(), crowd.rig, body))
    done = time.process_time()
    ids = torch.tensor(sorted({i for batch in found for i in batch.ids.tolist()}))
    fits = [batch.people(ids) for batch in fits]
    points = torch.cat([batch.keypoints_3d[..., :3] for batch in fits]).numpy().astype(float)
    status = torch.cat([batch.status for batch in fits]).numpy()
    points[~np.isin(status, [Status.OK, Status.BRIDGED, Status.FEW_KEYPOINTS])] = np.nan
    off = np.linalg.norm(crowd.world[:, :, None] - points[:, None], axis=-1).mean(-1)
    truth, track = linear_sum_assignment(-(off < MATCH_M).sum(0))
    own = np.where(status[:, track] == Status.OK, off[:, truth, track], np.nan)
    who = score_identities(off, np.ones(off.shape[:2], bool), np.isfinite(off).any(1))
    return FitScore(
        mpjpe_mm=tuple(float(x) for x in (1000 * np.nanmean(own, 0)).round(2)),
        fitted=float(np.isfinite(own).mean()),
        idf1=who.idf1,
        switches=who.switches,
        associate_ms=1000 * (associated - begun) / len(off),
        all_ms=1000 * (done - begun) / len(off),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--motion", type=Path, default=ROOT.parent / "shared" / "data" / "motion" / "poses.npz"
    )
    parser.add_argument("--seeds", default="201,202,203,204,205,206,207,208")
    parser.add_argument("--only", default="", help="scenes whose names begin so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fit", action="store_true", help="fit bodies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(s) for s in args.seeds.split(",")]
    figures = fits(args.motion, seeds, args.only) if args.fit else tracks(args.motion, seeds, args.only)
    if args.json:
        old = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
        kept = {part: old.get(part, {}) | rows for part, rows in figures.items()}
        args.json.write_text(json.dumps(old | kept, indent=1) + "\n", encoding="utf-8")


def fits(path: Path, seeds: Sequence[int], only: str) -> dict[str, object]:
    """Print and return the figures of the fits."""
    print(f"{'scene':34s} MPJPE mean  worst fitted %   IDF1  least switches association %", flush=True)
    table: dict[str, dict[str, object]] = {}
    fit(TIMED[0], path, 0)  # compiles
    for scene in SCENES:
        if scene.name not in FITTED or not scene.name.startswith(only):
            continue
        rows = [fit(scene, path, seed) for seed in seeds]
        mm, idf1 = [x for row in rows for x in row.mpjpe_mm], [row.idf1 for row in rows]
        share = sum(r.associate_ms for r in rows) / sum(r.all_ms for r in rows)
        print(
            f"{scene.name:34s} {np.mean(mm):10.2f} {max(mm):6.2f} "
            f"{100 * np.mean([r.fitted for r in rows]):8.2f} {np.mean(idf1):.4f} {min(idf1):.4f} "
            f"{sum(r.switches for r in rows):8d} {100 * share:13.1f}",
            flush=True,
        )
        table[scene.name] = {str(s): rounded(r) for s, r in zip(seeds, rows, strict=True)}
    times = {}
    for scene in TIMED:
        if not scene.name.startswith(only):
            continue
        row = fit(scene, path, seeds[0])
        times[scene.name] = {"association": round(row.associate_ms, 2), "all": round(row.all_ms, 2)}
        print(f"{scene.name:34s} {row.associate_ms:9.2f} of {row.all_ms:.2f} ms a frame", flush=True)
    return {"fits": table, "ms_per_frame_people_x_views": times}


def tracks(path: Path, seeds: Sequence[int], only: str) -> dict[str, object]:
    """Print and return the figures of the tracks."""
    table: dict[str, dict[str, object]] = {}
    head = "IDF1 mean  least switches longest main missed % unseen % false %  MPJPE worst  ids near %"
    print(f"{'scene':34s} {head}", flush=True)
    for scene in SCENES:
        if not scene.name.startswith(only):
            continue
        rows = [run(scene, path, seed) for seed in seeds]
        idf1, mm = ([getattr(r, k) for r in rows] for k in ("idf1", "mpjpe_mm"))
        print(
            f"{scene.name:34s} {np.mean(idf1):9.4f} {min(idf1):.4f} {sum(r.switches for r in rows):8d} "
            f"{max(r.longest for r in rows):7d} {sum(r.main_wrong for r in rows):4d} "
            f"{100 * np.mean([r.missed for r in rows]):8.2f} "
            f"{100 * np.mean([r.unseen for r in rows]):8.2f} {100 * np.mean([r.false for r in rows]):7.2f} "
            f"{np.mean(mm):6.1f} {max(mm):5.1f} "
            f"{max(r.ids for r in rows):4d} {100 * np.mean([r.near for r in rows]):6.0f}",
            flush=True,
        )
        table[scene.name] = {str(s): rounded(r) for s, r in zip(seeds, rows, strict=True)}
    return {"scenes": table}


def rounded(score: Score | FitScore) -> dict[str, float]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(score).items()}


if __name__ == "__main__":
    main()
