"""Calibration files of every format, written by hand from its description, and the cameras that they hold."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.calibrations import (
    biocv,
    colmap,
    easymocap,
    human36m,
    opencap,
    opencv,
    optitrack,
    pose2sim,
    qualisys,
    skeletool,
    vicon,
    xrprimer,
)
from pipeline.cameras import Rig

TRUTH = Rig(
    names=("front", "side"),
    K=np.array([[[1000, 0, 640], [0, 1010, 360], [0, 0, 1]], [[1400, 0, 950], [0, 1400, 530], [0, 0, 1.0]]]),
    dist=np.array([[0.1, -0.05, 0.001, -0.002, 0.02, 0, 0, 0], [0.0] * 8]),
    # A third of a turn about (1, 1, 1), and a quarter about y: at (1, −4, −0.5) and (5, −1.2, 0).
    R=np.array([[[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [-1, 0, 0.0]]]),
    t=np.array([[0.5, -1, 4], [0, 1.2, 5]]),
    size=np.array([[1280, 720], [1920, 1080]]),
)
"""The cameras that the files in ``BY_HAND`` describe, but for what a format cannot."""
NO_LENS = replace(TRUTH, dist=np.zeros((2, 8)))

STEREO = replace(
    TRUTH,
    names=("1", "2"),
    R=np.array([np.eye(3), [[1, 0, 0], [0, 0, 1], [0, -1, 0]]]),
    t=np.array([[0, 0, 0], [-0.5, -2.8, 4]]),
    size=np.array([[1280, 720]] * 2),
)
"""The cameras in the world of the first, with pictures of one size."""

H36M_LENSES = ((1145.0, 1143, 512, 515, -0.2, 0.24, -0.02, -0.0009, -0.0016),) * 4
H36M_POSE = (-np.pi / 2, 0.0, 0.0, 1000.0, -4000, 1500)
"""Euler angles of a level camera that looks along y, and its place, mm; of the others, x is larger."""
H36M = Rig(
    human36m.CAMERAS,
    np.tile([[1145.0, 0, 512], [0, 1143, 515], [0, 0, 1]], (4, 1, 1)),
    np.tile([-0.2, 0.24, -0.0009, -0.0016, -0.02, 0, 0, 0], (4, 1)),
    np.tile([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], (4, 1, 1)),
    np.array([[-1 - c, 1.5, 4] for c in range(4)]),
    np.zeros((4, 2), np.int64),
)
# Rx(90°) leads from z-up axes to the camera's: its inverse, Rx(−90°), is what has its y axis along z.


@dataclass(frozen=True)
class ByHand:
    files: Mapping[str, str | bytes]
    """Content by name; the first stands for the calibration."""
    truth: Rig = TRUTH


def module_of(form: object) -> object:
    """The module that reads a key of ``BY_HAND``."""
    return form[0] if isinstance(form, tuple) else form


def put(folder: Path, form: object) -> tuple[Path, ...]:
    """The files of a format, written into a folder."""
    for name, content in BY_HAND[form].files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return tuple(folder / name for name in BY_HAND[form].files)


BY_HAND: Mapping[object, ByHand] = {
    pose2sim: ByHand({
        "calibration.toml": """
[cam_01]
name = "front"
size = [1280.0, 720.0]
matrix = [[1000.0, 0.0, 640.0], [0.0, 1010.0, 360.0], [0.0, 0.0, 1.0]]
distortions = [0.1, -0.05, 0.001, -0.002, 0.02]
rotation = [1.2091995761561452, 1.2091995761561452, 1.2091995761561452]
translation = [0.5, -1.0, 4.0]
fisheye = false

[side]
size = [1920, 1080]
matrix = [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]]
distortions = [0, 0, 0, 0]
rotation = [0.0, 1.5707963267948966, 0.0]
translation = [0.0, 1.2, 5.0]

[metadata]
adjusted = false
error = 0.0
"""
    }),
    easymocap: ByHand({
        "intri.yml": """%YAML:1.0
---
names:
   - "front"
   - "side"
K_front: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [1000.0, 0.0, 640.0, 0.0, 1010.0, 360.0, 0.0, 0.0, 1.0]
dist_front: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [0.1, -0.05, 0.001, -0.002, 0.02]
H_front: 720
W_front: 1280
K_side: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [1400., 0., 950., 0., 1400., 530., 0., 0., 1.]
dist_side: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [0., 0., 0., 0., 0.]
H_side: 1080
W_side: 1920
""",
        "extri.yml": """%YAML:1.0
---
names:
   - "front"
   - "side"
R_front: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [1.2091995761561452, 1.2091995761561452, 1.2091995761561452]
Rot_front: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [0., 0., 1., 1., 0., 0., 0., 1., 0.]
T_front: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0.5, -1., 4.]
R_side: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0., 1.5707963267948966, 0.]
T_side: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0., 1.2, 5.]
""",
    }),
    opencv: ByHand({
        "front.yml": """%YAML:1.0
---
calibration_time: "Mon 01 Jan 2024"
image_width: 1280
image_height: 720
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1000., 0., 640., 0., 1010., 360., 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ 0.1, -0.05, 0.001, -0.002, 0.02 ]
R: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 0., 0., 1., 1., 0., 0., 0., 1., 0. ]
T: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [ 0.5, -1., 4. ]
""",
        "side.yaml": """image_width: 1920
image_height: 1080
camera_name: side
camera_matrix:
  rows: 3
  cols: 3
  data: [1400.0, 0.0, 950.0, 0.0, 1400.0, 530.0, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [0.0, 0.0, 0.0, 0.0, 0.0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
rvec: [0.0, 1.5707963267948966, 0.0]
tvec: [0.0, 1.2, 5.0]
""",
    }),
    skeletool: ByHand(
        {
            "camera.calibration": """Skeletool Camera Calibration File V1.0
name          front
  sensor      10 10
  size        1280 720
  animated    0
  intrinsic   1000 0 640 0 0 1010 360 0 0 0 1 0 0 0 0 1 
  extrinsic   0 0 1 500 1 0 0 -1000 0 1 0 4000 0 0 0 1 
  radial      0
name          side
  sensor      10 10
  size        1920 1080
  animated    0
  extrinsic   0 0 1 0 0 1 0 1200 -1 0 0 5000 0 0 0 1 
  intrinsic   1400 0 950 0 0 1400 530 0 0 0 1 0 0 0 0 1 
  radial      0
"""
        },
        NO_LENS,
    ),
    human36m: ByHand(
        {
            "metadata.xml": "<metadata><dbcameras><index2id>1</index2id></dbcameras><w0>["
            + " ".join(
                [
                    repr(float(x))
                    for c in range(4)
                    for _ in range(11)
                    for x in np.add(H36M_POSE, [0, 0, 0, 1000 * c, 0, 0])
                ]
                + [repr(float(x)) for lens in H36M_LENSES for x in lens]
            )
            + "]</w0></metadata>"
        },
        H36M,
    ),
    qualisys: ByHand({
        "session.qca.txt": """<?xml version="1.0" encoding="UTF-8"?>
<calibration calibrated="2023-01-01 10:00:00" source="session.qca" type="regular" version="1.5">
<cameras>
<camera active="1" calibrated="true" avg-residual="0.5" serial="marker" model="Oqus 300+" viewrotation="0">
<fov_video left="0" top="0" right="1295" bottom="1023"/>
</camera>
<camera active="1" calibrated="true" avg-residual="0.5" serial="front" model="Miqus Video" viewrotation="0">
<fov_video left="10" top="20" right="1289" bottom="739"/>
<transform x="1000" y="-4000" z="-500" r11="0" r12="0" r13="1" r21="-1" r22="0" r23="0"
 r31="0" r32="-1" r33="0"/>
<intrinsic focallength="9" sensorMinU="0" sensorMaxU="82943" focalLengthU="64000" focalLengthV="64640"
 centerPointU="41600" centerPointV="24320" skew="0" radialDistortion1="0.1" radialDistortion2="-0.05"
 radialDistortion3="0.02" tangentalDistortion1="0.001" tangentalDistortion2="-0.002"/>
</camera>
<camera active="1" calibrated="true" avg-residual="0.5" serial="side" model="Oqus 210c Video">
<fov_video left="0" top="0" right="1919" bottom="1079"/>
<transform x="5000" y="-1200" z="0" r11="0" r12="0" r13="1" r21="0" r22="-1" r23="0" r31="1" r32="0" r33="0"/>
<intrinsic focallength="9" focalLengthU="89600" focalLengthV="89600" centerPointU="60800" centerPointV="33920"
 skew="0" radialDistortion1="0" radialDistortion2="0" radialDistortion3="0" tangentalDistortion1="0"
 tangentalDistortion2="0"/>
</camera>
</cameras>
</calibration>
"""
    }),
    vicon: ByHand(
        {
            "session.xcp": """<?xml version="1.0" encoding="UTF-8"?>
<Cameras VERSION="2.1">
  <Camera DEVICEID="111" TYPE="Vantage" SENSOR_SIZE="2432 2048" PIXEL_ASPECT_RATIO="1">
    <KeyFrames/>
  </Camera>
  <Camera DEVICEID="front" TYPE="Vue (video)" SENSOR_SIZE="1280 720"
    PIXEL_ASPECT_RATIO="0.99009900990099009901">
    <KeyFrames>
      <KeyFrame FRAME="0" FOCAL_LENGTH="1000" ORIENTATION="0.5 0.5 0.5 0.5" POSITION="1000 -4000 -500"
        PRINCIPAL_POINT="640 360" VICON_RADIAL2="Vicon3Parameter 640 360 0 0 0" WORLD_ERROR="0.3"/>
    </KeyFrames>
  </Camera>
  <Camera DEVICEID="side" TYPE="VIDEO" SENSOR_SIZE="1920 1080" PIXEL_ASPECT_RATIO="1">
    <KeyFrames>
      <KeyFrame FRAME="0" FOCAL_LENGTH="1400" ORIENTATION="0 0.70710678118654752 0 0.70710678118654752"
        POSITION="5000 -1200 0" PRINCIPAL_POINT="950 530" VICON_RADIAL="0 0"/>
    </KeyFrames>
  </Camera>
</Cameras>
"""
        },
        NO_LENS,
    ),
    optitrack: ByHand({
        "Calibration 2024.mcal": """\ufeff<?xml version="1.0" encoding="UTF-16LE"?>
<calibrationProfile version="1">
  <MotiveBuildInfo AppVersion="3.1.0.2"/>
  <Calibration>
    <Cameras Count="2">
      <Camera Serial="front">
        <Properties CameraID="1"/>
        <Attributes ImagerPixelWidth="1280" ImagerPixelHeight="720"/>
        <Intrinsic LensCenterX="1" LensCenterY="1" HorizontalFocalLength="1" VerticalFocalLength="1" k1="9"/>
        <IntrinsicStandardCameraModel LensCenterX="640" LensCenterY="360" HorizontalFocalLength="1000"
          VerticalFocalLength="1010" k1="0.1" k2="-0.05" k3="0.02" TangentialX="0.001" TangentialY="-0.002"/>
        <Extrinsic X="1" Y="-4" Z="-0.5" OrientMatrix0="0" OrientMatrix1="-1" OrientMatrix2="0"
          OrientMatrix3="0" OrientMatrix4="0" OrientMatrix5="-1" OrientMatrix6="1"
          OrientMatrix7="0" OrientMatrix8="0"/>
      </Camera>
      <Camera Serial="side">
        <Attributes ImagerPixelWidth="1920" ImagerPixelHeight="1080"/>
        <IntrinsicStandardCameraModel LensCenterX="950" LensCenterY="530" HorizontalFocalLength="1400"
          VerticalFocalLength="1400" k1="0" k2="0" k3="0" TangentialX="0" TangentialY="0"/>
        <Extrinsic X="5" Y="-1.2" Z="0" OrientMatrix0="0" OrientMatrix1="0" OrientMatrix2="1"
          OrientMatrix3="0" OrientMatrix4="-1" OrientMatrix5="0" OrientMatrix6="1"
          OrientMatrix7="0" OrientMatrix8="0"/>
      </Camera>
    </Cameras>
  </Calibration>
</calibrationProfile>
""".encode("utf-16-le")
    }),
    biocv: ByHand({
        "front.mp4.calib": """1280
720
1000 0 640
0 1010 360
0 0 1

0 0 1 500
1 0 0 -1000
0 1 0 4000
0 0 0 1

0.1 -0.05 0.001 -0.002 0.02
""",
        "side.calib": """1920
1080
1400.0 0.0 950.0
0.0 1400.0 530.0
0.0 0.0 1.0
0.0 0.0 1.0 0.0
0.0 1.0 0.0 1200.0
-1.0 0.0 0.0 5000.0
0 0 0 0
""",
    }),
    opencap: ByHand({
        f"cameraIntrinsicsExtrinsics_{TRUTH.names[v]}.pickle": pickle.dumps({
            "imageSize": np.array([[TRUTH.size[v, 1]], [TRUTH.size[v, 0]]], float),
            "intrinsicMat": TRUTH.K[v],
            "distortion": TRUTH.dist[v, None, :5],
            "rotation": TRUTH.R[v],
            "translation": 1000 * TRUTH.t[v, :, None],
            "rotation_EulerAngles": np.zeros((3, 1)),
        })
        for v in range(2)
    }),
    xrprimer: ByHand({
        "fisheye_param_00.json": """{"class_name": "FisheyeCameraParameter", "convention": "opencv",
 "extrinsic_r": [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "extrinsic_t": [0.5, -1, 4], "height": 720,
 "intrinsic": [[1000, 0, 640, 0], [0, 1010, 360, 0], [0, 0, 0, 1], [0, 0, 1, 0]], "k1": 0.1, "k2": -0.05,
 "k3": 0.02, "k4": 0.0, "k5": 0.0, "k6": 0.0, "name": "front", "p1": 0.001, "p2": -0.002, "width": 1280,
 "world2cam": true}""",
        "fisheye_param_01.json": """{"class_name": "PinholeCameraParameter", "convention": "opencv",
 "extrinsic_r": [[0, 0, -1], [0, 1, 0], [1, 0, 0]], "extrinsic_t": [5, -1.2, 0], "height": 1080,
 "intrinsic": [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]], "name": "side", "width": 1920,
 "world2cam": false}""",
    }),
    colmap: ByHand({
        "cameras.txt": """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 2
2 SIMPLE_PINHOLE 1920 1080 1400 950.5 530.5
1 FULL_OPENCV 1280 720 1000 1010 640.5 360.5 0.1 -0.05 0.001 -0.002 0.02 0 0 0
""",
        "images.txt": """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
#   POINTS2D[] as (X, Y, POINT3D_ID)
# Number of images: 2, mean observations per image: 2
1 0.5 0.5 0.5 0.5 0.5 -1 4 1 front/000001.jpg
10 20 -1 30 40 5
7 0.70710678118654752 0 0.70710678118654752 0 0 1.2 5 2 side.png

""",
    }),
    (opencv, "xml"): ByHand({
        "front.xml": """<?xml version="1.0"?>
<opencv_storage>
<calibration_time>"Mon 01 Jan 2024"</calibration_time>
<image_width>1280</image_width>
<image_height>720</image_height>
<camera_matrix type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    1000. 0. 640. 0. 1010. 360. 0. 0. 1.</data></camera_matrix>
<distortion_coefficients type_id="opencv-matrix">
  <rows>1</rows>
  <cols>5</cols>
  <dt>d</dt>
  <data>
    0.1 -0.05 0.001 -0.002 0.02</data></distortion_coefficients>
<R type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    0. 0. 1. 1. 0. 0. 0. 1. 0.</data></R>
<T type_id="opencv-matrix">
  <rows>3</rows>
  <cols>1</cols>
  <dt>d</dt>
  <data>
    0.5 -1. 4.</data></T>
</opencv_storage>
""",
        "side.xml": """<?xml version="1.0"?>
<opencv_storage>
<image_size>
  1920 1080</image_size>
<cameraMatrix type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    1400. 0. 950. 0. 1400. 530. 0. 0. 1.</data></cameraMatrix>
<distCoeffs type_id="opencv-matrix">
  <rows>1</rows>
  <cols>4</cols>
  <dt>d</dt>
  <data>
    0. 0. 0. 0.</data></distCoeffs>
<rvec>
  0. 1.5707963267948966 0.</rvec>
<tvec>
  0. 1.2 5.</tvec>
</opencv_storage>
""",
    }),
    (opencv, "json"): ByHand({
        "front.json": """{
    "image_width": 1280,
    "image_height": 720,
    "camera_matrix": {
        "type_id": "opencv-matrix",
        "rows": 3,
        "cols": 3,
        "dt": "d",
        "data": [ 1000.0, 0.0, 640.0, 0.0, 1010.0, 360.0, 0.0, 0.0, 1.0 ]
    },
    "distortion_coefficients": [ 0.1, -0.05, 0.001, -0.002, 0.02 ],
    "R": [ 1.2091995761561452, 1.2091995761561452, 1.2091995761561452 ],
    "T": [ 0.5, -1.0, 4.0 ]
}
""",
        "side.json": '{"K": [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]], "D": [0, 0, 0, 0], "rotation": '
        '[[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "translation": [0, 1.2, 5], "resolution": [1920, 1080]}',
    }),
    (opencv, "list of cameras"): ByHand({
        "rig.json": """{"cameras": [
{"name": "front", "resolution": [1280, 720], "K": [[1000, 0, 640], [0, 1010, 360], [0, 0, 1]],
 "distCoef": [0.1, -0.05, 0.001, -0.002, 0.02], "R": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
 "t": [[0.5], [-1], [4]]},
{"name": "side", "resolution": [1920, 1080], "K": [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]],
 "distCoef": [0, 0, 0, 0, 0], "R": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "t": [[0], [1.2], [5]]}]}""",
    }),
    (opencv, "table of cameras"): ByHand({
        "rig.json": """{
"front": {"image_size": [1280, 720], "camera_matrix": [[1000, 0, 640], [0, 1010, 360], [0, 0, 1]],
 "dist": [0.1, -0.05, 0.001, -0.002, 0.02], "R": [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "T": [0.5, -1, 4]},
"side": {"image_size": [1920, 1080], "camera_matrix": [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]],
 "dist": [0, 0, 0, 0, 0], "R": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "T": [0, 1.2, 5]}}""",
    }),
    (opencv, "stereo"): ByHand({
        "stereo.yml": """%YAML:1.0
---
M1: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1000., 0., 640., 0., 1010., 360., 0., 0., 1. ]
D1: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ 0.1, -0.05, 0.001, -0.002, 0.02 ]
M2: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1400., 0., 950., 0., 1400., 530., 0., 0., 1. ]
D2: !!opencv-nd-matrix
   sizes: [ 5 ]
   dt: d
   data: [ 0., 0., 0., 0., 0. ]
imageSize: [ 1280, 720 ]
R1: [ 0., 0., 0. ]
R: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1., 0., 0., 0., 0., 1., 0., -1., 0. ]
T: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [ -0.5, -2.8, 4. ]
"""
    }, STEREO),
    (opencv, "stereo in two files"): ByHand({
        "intrinsics.json": '{"K_left": [[1000, 0, 640], [0, 1010, 360], [0, 0, 1]], "D_left": '
        '[0.1, -0.05, 0.001, -0.002, 0.02], "K_right": [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]], '
        '"D_right": [0, 0, 0, 0, 0], "image_width": 1280, "image_height": 720}',
        "extrinsics.json": '{"R": [[1, 0, 0], [0, 0, 1], [0, -1, 0]], "T": [-0.5, -2.8, 4]}',
    }, replace(STEREO, names=("left", "right"))),
    (colmap, "binary"): ByHand({
        "cameras.bin": struct.pack("<QiiQQ3d", 2, 2, 0, 1920, 1080, 1400, 950.5, 530.5)
        + struct.pack("<iiQQ4d", 1, 6, 1280, 720, 1000, 1010, 640.5, 360.5)
        + struct.pack("<8d", 0.1, -0.05, 0.001, -0.002, 0.02, 0, 0, 0),
        "images.bin": struct.pack("<Qi7di", 2, 1, 0.5, 0.5, 0.5, 0.5, 0.5, -1, 4, 1)
        + b"front/000001.jpg\0"
        + struct.pack("<Qddqddq", 2, 10, 20, -1, 30, 40, 5)
        + struct.pack("<i7di", 7, 0.5**0.5, 0, 0.5**0.5, 0, 0, 1.2, 5, 2)
        + b"side.png\0"
        + struct.pack("<Q", 0),
    }),
}  # fmt: skip
"""By the format's module, or that and a flavour."""
