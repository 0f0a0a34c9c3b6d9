"""Video: the frames of a clip, a camera or a stack of pages, each with its mask.

`Segmenter.video` and `slime segment clip.mp4` are its doors. PyAV and OpenCV are imported only where they are needed.
"""
