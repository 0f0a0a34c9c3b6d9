"""Exports a segmenter: ONNX files with everything baked in or shared, proven equal to PyTorch, then published."""
