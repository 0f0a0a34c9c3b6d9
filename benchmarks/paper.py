"""The paper's own figures (SLiMe, arXiv 2309.03179, tables 2 to 4): mean IoU in percent over three initialisations.

They are of PASCAL-Part (car, horse) and CelebAMask-HQ (face) with Stable Diffusion 2.1: other data, another backbone.
"""

from __future__ import annotations

DATA = {"car": "PASCAL-Part", "horse": "PASCAL-Part", "face": "CelebAMask-HQ"}
MEAN = "mean"

# By the number of training images, the class and the part.
FIGURES: dict[int, dict[str, dict[str, str]]] = {
    1: {
        "car": {
            "background": "75.7 ± 3.1",
            "body": "79.6 ± 0.4",
            "light": "37.5 ± 5.4",
            "plate": "46.5 ± 2.6",
            "wheel": "65.0 ± 1.4",
            "window": "65.6 ± 1.6",
            MEAN: "61.6 ± 0.5",
        },
        "horse": {
            "background": "74.4 ± 0.6",
            "head": "61.5 ± 1.0",
            "leg": "50.3 ± 0.7",
            "neck+torso": "55.7 ± 1.1",
            "tail": "40.1 ± 2.9",
            MEAN: "56.4 ± 0.8",
        },
        "face": {
            "background": "81.6 ± 0.8",
            "face": "86.8 ± 0.3",
            "cloth": "52.6 ± 1.4",
            "eyebrow": "44.2 ± 2.1",
            "ear": "57.1 ± 3.6",
            "eye": "61.3 ± 4.6",
            "hair": "80.9 ± 0.5",
            "mouth": "74.8 ± 2.9",
            "neck": "78.9 ± 1.3",
            "nose": "77.5 ± 1.8",
            MEAN: "69.6 ± 0.3",
        },
    },
    10: {
        "car": {
            "background": "78.4 ± 1.6",
            "body": "81.5 ± 1.0",
            "light": "56.8 ± 1.2",
            "plate": "54.8 ± 2.7",
            "wheel": "68.3 ± 0.1",
            "window": "70.3 ± 0.9",
            MEAN: "68.3 ± 1.0",
        },
        "horse": {
            "background": "79.6 ± 2.5",
            "head": "63.8 ± 0.7",
            "leg": "59.5 ± 2.1",
            "neck+torso": "68.1 ± 4.4",
            "tail": "45.4 ± 2.4",
            MEAN: "63.3 ± 2.4",
        },
        "face": {
            "background": "87.1 ± 0.0",
            "face": "88.8 ± 0.2",
            "cloth": "63.1 ± 1.6",
            "eyebrow": "62.0 ± 1.6",
            "ear": "64.2 ± 1.9",
            "eye": "65.5 ± 3.0",
            "hair": "85.3 ± 0.4",
            "mouth": "82.1 ± 1.6",
            "neck": "79.4 ± 2.2",
            "nose": "79.1 ± 1.4",
            MEAN: "75.7 ± 0.4",
        },
    },
}
