"""Detectors: people and their keypoints in pictures, by networks that onnxruntime runs."""
