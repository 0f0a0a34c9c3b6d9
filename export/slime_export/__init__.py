"""From a segmenter to a served one: ONNX files with everything baked in, proven equal to PyTorch, then published."""
