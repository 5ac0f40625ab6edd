"""The baseline of `benchmarks.detection`, in an environment with ultralytics: one picture after the other.

python benchmarks/ultralytics_loop.py WEIGHTS PICTURES.npy SIZE     then a line "run" on standard input per round
"""

import json
import os
import sys
import time

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import numpy as np
import torch
from ultralytics import YOLO

weights, pictures, size = sys.argv[1], list(np.load(sys.argv[2])), int(sys.argv[3])
torch.set_num_threads(2)
model = YOLO(weights, task="detect")
options = {"conf": 0.35, "iou": 0.5, "max_det": 200, "imgsz": size, "device": "cpu", "verbose": False, "rect": False}
model.predict(pictures[0], **options)
print("ready", flush=True)
for _ in sys.stdin:
    found = []
    begun = time.perf_counter()
    for picture in pictures:
        boxes = model.predict(picture, **options)[0].boxes
        found.append([boxes.xyxy.tolist(), boxes.cls.tolist(), boxes.conf.tolist()])
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "found": found, "names": model.names}), flush=True)
